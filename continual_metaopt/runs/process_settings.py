"""How a process computes that executes many small steps."""

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # compiled runs do without

THREADS = 1  # the steps of small networks do not profit from more, and runs share the cores

# numbers and largest value of glibc's malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD = -1, -3, 32 * 2**20

KEPT = 256 * 2**20  # bytes at the end of the heap that may stay unused


def set_up_process() -> None:
    """Compute on one thread, with 0 in place of denormal numbers, and keep memory that is freed.

    Runs, and all that measures what their steps cost, compute like this. The settings hold for the whole process, the
    second for the calling thread.
    """
    import torch

    torch.set_num_threads(THREADS)
    torch.set_flush_denormal(True)  # decaying traces become denormal numbers, which are slow to compute with
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees, for the next temporary tensor.

    By default glibc returns freed memory to the system from some hundred kilobytes on, and gets it back page by page:
    for tensors of a megabyte, most of the time of an optimizer's step. Tensors of more than 32 MiB are still returned.

    Returns:
        Whether the C library is one that has these settings; with another one, nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; no such library; Windows
        return False
    settings = {MMAP_THRESHOLD: LARGEST_MMAP_THRESHOLD, TRIM_THRESHOLD: KEPT}
    return all(mallopt(setting, value) == 1 for setting, value in settings.items())


def available_device(name: str) -> "torch.device":
    """Find a device by its name.

    Raises:
        ValueError: PyTorch cannot use it here.
    """
    import torch

    device = torch.device(name)
    module = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(device.type)
    if module is not None and not module.is_available():
        raise ValueError(f"the device {name} is not possible: PyTorch finds no such device here; use cpu")
    return device
