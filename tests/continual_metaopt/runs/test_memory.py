"""The allocator's settings."""

import ctypes
import platform
from typing import Any

import pytest

from continual_metaopt.runs import memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_glibc_takes_the_settings() -> None:
    assert memory.keep_freed_memory()


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __init__(self, name: Any) -> None:
            pass

    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert not memory.keep_freed_memory()
