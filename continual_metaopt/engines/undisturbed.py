"""The random numbers that PyTorch, NumPy and Python draw from, all three."""

import pickle
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

SHARED = threading.RLock()  # held while the random numbers, which all threads share, are to be put back afterwards


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Within it, random numbers may be drawn without changing those that come after; one thread at a time."""
    with SHARED:
        generators = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        try:
            yield
        finally:
            torch.set_rng_state(generators[0])
            np.random.set_state(generators[1])  # noqa: NPY002
            random.setstate(generators[2])


def random_state() -> bytes:
    """The states of the generators, to be compared."""
    return pickle.dumps((torch.get_rng_state().numpy(), np.random.get_state(), random.getstate()))  # noqa: NPY002


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Within it a network predicts as in evaluation, without gradients; nothing of it or of random numbers changes."""
    modes: Mapping[nn.Module, bool] = {module: module.training for module in model.modules()}
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    model.eval()
    try:
        with SHARED, torch.no_grad(), torch.random.fork_rng(list(devices)):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
