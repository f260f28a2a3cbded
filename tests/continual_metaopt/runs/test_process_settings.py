"""How a process is set up that executes many small steps."""

import ctypes
import platform
from typing import Any

import pytest
import torch

from continual_metaopt.runs.process_settings import keep_freed_memory, set_up_process


def test_one_thread_and_no_denormal_numbers() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    torch.set_flush_denormal(False)
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)
    assert smallest / 2 > 0
    try:
        set_up_process()
        assert torch.get_num_threads() == 1
        assert smallest / 2 == 0
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_glibc_takes_the_settings() -> None:
    assert keep_freed_memory()


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __init__(self, name: Any) -> None:
            pass

    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert not keep_freed_memory()
