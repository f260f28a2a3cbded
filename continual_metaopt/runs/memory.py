"""How the C library's allocator treats the memory of temporary tensors."""

import ctypes

# numbers and largest value of glibc's malloc.h
TRIM_THRESHOLD, MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD = -1, -3, 32 * 2**20

KEPT = 256 * 2**20  # bytes at the end of the heap that may stay unused


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
