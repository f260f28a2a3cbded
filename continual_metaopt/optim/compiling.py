"""Functions that are compiled once per machine: the code is kept in the user's cache folder, not beside the package."""

import functools
import hashlib
import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.runtime import rtsys

from continual_metaopt.streams.decoded_images import CACHE_VARIABLE, cache_folder
from continual_metaopt.streams.private_folders import private_folder, temporary_folder

PACKAGE = Path(__file__).parents[1]
SOURCES = [  # files with compiled functions; each may hold code of the others
    *("engines/compiled/denormals.py", "engines/compiled/kernels.py", "engines/compiled/passes.py"),
    "engines/traced/image_kernels.py",
    *("optim/meta_updates.py", "optim/noise.py", "optim/two_horizons.py"),
]


def compiled(function: Callable[..., Any]) -> Any:
    """Let a function of one of the ``SOURCES`` be compiled when it is first called, unless its code is kept already.

    Returns:
        What calls the compiled function. Divisions by zero and so on give what NumPy gives.
    """
    dispatcher = numba.njit(error_model="numpy", nogil=True)(function)
    keep_code_of(dispatcher, function)
    return dispatcher


def keep_code_of(dispatcher: Any, function: Callable[..., Any]) -> None:
    """Let the compiled code of a function be kept in the folder of these sources, and be looked for there."""
    if compiled_code_folder() is not None:
        dispatcher._cache = _Cache(function)


@functools.cache
def compiled_code_folder() -> Path | None:
    """The folder of the compiled code of these sources, made if it is not there; None if no folder can be written.

    It is below ``NUMBA_CACHE_DIR`` if that is set, and else below the user's cache folder. Where that cannot be
    written, a warning says so, and it is a temporary folder.
    """
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for source in SOURCES:
        digest.update((PACKAGE / source).read_bytes())
    refused = []
    for place in _places():
        try:
            folder = private_folder(place / digest.hexdigest()[:16])
        except OSError as error:
            refused.append(f"'{place}' ({error})")
            continue
        if refused:
            _warn(refused, f"it is kept in '{folder}'")
        return folder
    _warn(refused, "every process compiles anew, which takes about 20 seconds")
    return None


def _places() -> Iterator[Path]:
    if numba.config.CACHE_DIR:
        yield Path(numba.config.CACHE_DIR) / "continual-metaopt"
    yield cache_folder().parent / "compiled"
    with suppress(OSError):  # there may be none
        yield temporary_folder("compiled")


def _warn(refused: list[str], instead: str) -> None:
    if multiprocessing.parent_process() is None:  # once, not in each worker
        warnings.warn(
            f"compiled code cannot be kept in {' or '.join(refused)}, so {instead}; set {CACHE_VARIABLE} or "
            "NUMBA_CACHE_DIR to a folder that can be written",
            stacklevel=2,
        )


class _Locator(_CacheLocator):
    """Tells Numba where the compiled code of a function is."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        self._py_file, self._lineno = py_file, py_func.__code__.co_firstlineno

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> "_Locator":
        return cls(py_func, py_file)

    def get_cache_path(self) -> str:
        return str(compiled_code_folder())

    def get_source_stamp(self) -> str:
        return ""  # the folder is that of these sources

    def get_disambiguator(self) -> str:
        return str(self._lineno)


class _Implementation(CompileResultCacheImpl):
    _locator_classes = [_Locator]  # noqa: RUF012


class _Cache(FunctionCache):
    """A cache that never stops a run: damaged files are compiled anew, and what cannot be written is not kept.

    Code that is kept is loaded without what Numba needs to compile, which takes a second in each process.
    """

    _impl_class = _Implementation

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            rtsys.initialize(target_context)
            with self._guard_against_spurious_io_errors():
                return self._load_overload(sig, target_context)
        except Exception:
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)
