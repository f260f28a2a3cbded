"""What all tests share."""

import functools
import gc
import inspect
import os
import signal
import sys
import types
from collections.abc import Iterator

import platformdirs
import pytest

# compiled code is known by its sources, so that all processes of all test sessions can share it
os.environ.setdefault("NUMBA_CACHE_DIR", str(platformdirs.user_cache_path("continual-metaopt", appauthor=False)))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background; commands under test inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection() -> None:
    """Look for unused objects only when the tests run."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Go through what has been imported and collected, which lives until the end, once in place of again and again."""
    gc.enable()
    gc.freeze()
    strategies = sys.modules.get("avalanche.training.templates.base")
    if strategies is not None:  # which looks at the signatures of all classes whenever a strategy is made
        remembering = types.SimpleNamespace(**vars(inspect) | {"signature": functools.cache(inspect.signature)})
        vars(strategies)["inspect"] = remembering


@pytest.fixture(scope="session", autouse=True)
def _decoded_images_kept_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the processes that they start, neither use nor fill the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTINUAL_METAOPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _files_stay_in_memory() -> Iterator[None]:
    """No test outlives the machine, and waiting for the disk takes longer than most of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
