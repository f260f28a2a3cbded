"""The compiled learner by itself: arrays that travel between processes, predictions, and what it does without torch."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from continual_metaopt.engines.compiled import kernels as k
from continual_metaopt.engines.compiled.engine import CompiledEngine
from continual_metaopt.engines.compiled.learner import CompiledLearner
from continual_metaopt.engines.observations import Observations
from continual_metaopt.engines.torch_engine import accuracy
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from tests.continual_metaopt.conftest import environment

SHAPE = (2, 9, 8)
NETWORKS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 4)),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 9), nn.Tanh(), nn.Linear(9, 4)),
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LeakyReLU(0.1), nn.Linear(80, 4)
    ),
}


class Images:
    """Random images and classes."""

    def __init__(self, n: int, dtype: type) -> None:
        random = np.random.RandomState(0)
        self.x, self.y = random.randn(n, *SHAPE).astype(dtype), random.randint(0, 4, n)

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, steps: slice) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return self.x[steps].copy(), self.y[steps].copy()


def engine_of(model: nn.Module, **options: object) -> CompiledEngine:
    engine = CompiledEngine(model, MetaOptimize(blocks(model), 1e-2, **options), nn.CrossEntropyLoss(), SHAPE)
    engine.load()
    return engine


def learn(learner: CompiledLearner, images: Images, first: int, last: int) -> Observations:
    seen = Observations(0, first)
    while seen.next_step < last:
        learner.learn(images, seen.next_step, seen, 10, at_most=last - seen.next_step)
    return seen


def learned(learner: CompiledLearner) -> list[bytes]:
    return [array.tobytes() for array in learner.learned]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("network", list(NETWORKS))
def test_it_predicts_what_torch_predicts(network: str, dtype: type) -> None:
    torch.manual_seed(0)
    model = NETWORKS[network]().to(torch.from_numpy(np.zeros(1, dtype)).dtype)
    images = Images(700, dtype)  # more than two batches
    pairs = [(torch.from_numpy(x), int(y)) for x, y in zip(images.x, images.y, strict=True)]
    learner = engine_of(model).learner
    before = learned(learner)

    found = learner.accuracy(images)

    assert found == accuracy(model, pairs, torch.device("cpu"))
    assert 0.1 < found < 0.5
    assert learned(learner) == before


@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("options", [{"gamma": "auto", "trace": "dutch"}, {"base": "lion", "meta": "sgd"}])
def test_a_pickled_learner_goes_on_bit_for_bit(network: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    engine, images = engine_of(NETWORKS[network](), **options), Images(60, np.float32)
    learn(engine.learner, images, 0, 25)
    travelled = pickle.loads(pickle.dumps(engine.learner))

    seen, expected = learn(travelled, images, 25, 60), learn(engine.learner, images, 25, 60)

    assert seen == expected
    assert learned(travelled) == learned(engine.learner)
    for array in filter(len, travelled.learned[:5]):
        assert array.ctypes.data % (k.ALIGNMENT * array.itemsize) == 0


def test_predicting_in_between_changes_nothing() -> None:
    torch.manual_seed(0)
    model, images = NETWORKS["cnn"](), Images(60, np.float32)
    plain, asked = engine_of(copy.deepcopy(model)).learner, engine_of(model).learner
    for first in range(0, 60, 20):
        learn(plain, images, first, first + 20)
        learn(asked, images, first, first + 20)
        asked.accuracy(images)
    assert learned(plain) == learned(asked)


WITHOUT_TORCH = """
import sys
from continual_metaopt.engines.compiled.learner import one_thread, libraries_that_multiply
from continual_metaopt.engines.compiled.denormals import flushed_denormals

def threads():
    return [library["num_threads"] for library in libraries_that_multiply().info()]

with one_thread, flushed_denormals():
    inside = threads()
import numba.np.linalg, scipy.linalg
numba.np.linalg.ensure_blas()
with one_thread:
    print(inside == threads() == [1] * len(inside), len(inside) > 0, "torch" in sys.modules)
"""


def test_without_torch_it_multiplies_onone_thread() -> None:
    """The library that the kernels multiply with is there when threads are limited for the first time."""
    command = [sys.executable, "-c", WITHOUT_TORCH]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "False"]
