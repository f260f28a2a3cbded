"""How a process computes that executes many small steps."""

import torch

from continual_metaopt.runs.memory import keep_freed_memory

THREADS = 1  # the steps of small networks do not profit from more, and runs share the cores


def set_up_process() -> None:
    """Compute on one thread, with 0 in place of denormal numbers, and keep memory that is freed.

    Runs, and all that measures what their steps cost, compute like this. The settings hold for the whole process, the
    second for the calling thread.
    """
    import torch  # compiled runs do without

    torch.set_num_threads(THREADS)
    torch.set_flush_denormal(True)  # decaying traces become denormal numbers, which are slow to compute with
    keep_freed_memory()


def available_device(name: str) -> torch.device:
    """A device by name.

    Raises:
        ValueError: PyTorch cannot use it here.
    """
    device = torch.device(name)
    module = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(device.type)
    if module is not None and not module.is_available():
        raise ValueError(f'device="{name}" is not possible: PyTorch finds no such device here; use device="cpu"')
    return device
