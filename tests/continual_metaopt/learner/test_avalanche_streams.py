"""Avalanche's own streams go into OnlineLearner."""

from pathlib import Path
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import numpy as np
import pytest
import torch
from avalanche.benchmarks import (
    PermutedMNIST,
    SplitMNIST,
    new_instances_benchmark,
    split_online_stream,
    with_classes_timeline,
)
from torch import nn

from continual_metaopt.engines.observations import Observations
from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.networks.mlp import MLP
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.streams import make_stream
from tests.continual_metaopt.conftest import small_network
from tests.streams.test_sources import idx


class Steps:
    """A recorder that keeps which steps and experiences it was given."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.experiences: list[int] = []

    def observe(self, observations: Observations) -> None:
        self.steps += range(observations.first_step, observations.next_step)
        self.experiences += [observations.experience] * len(observations)


def learner(model: nn.Module, recorder: Steps | None = None) -> OnlineLearner:
    return OnlineLearner(model=model, optimizer=MetaOptimize(blocks(model), 1e-3, meta_lr=0.02), recorder=recorder)


def our_stream() -> Any:
    return make_stream("class_split", classes_per_experience=5, samples_per_experience=33, labels="global")


@pytest.mark.parametrize(
    ("size", "drop_last", "learned", "boundaries"),
    [(1, False, 66, False), (10, False, 66, True), (10, True, 60, False), (10, True, 60, True)],
)
def test_a_stream_that_was_cut_into_pieces(size: int, drop_last: bool, learned: int, boundaries: bool) -> None:
    steps = Steps()
    cut = learner(small_network(), steps)
    pieces = split_online_stream(
        our_stream().train_stream,
        experience_size=size,
        shuffle=False,
        drop_last=drop_last,
        access_task_boundaries=boundaries,
    )
    cut.train(pieces)
    assert cut.n_samples == learned
    assert steps.steps == list(range(learned))
    assert steps.experiences == [0] * (learned // 2) + [1] * (learned // 2)
    if not drop_last:
        whole = learner(small_network())
        whole.train(our_stream().train_stream)
        assert all(a.equal(b) for a, b in zip(cut.model.parameters(), whole.model.parameters(), strict=True))
        assert cut.optimizer.step_size_report() == whole.optimizer.step_size_report()


def test_pieces_with_a_growing_head() -> None:
    from avalanche.models import IncrementalClassifier

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), IncrementalClassifier(64, 2))
    grown = learner(model)
    pieces = split_online_stream(our_stream().train_stream, experience_size=10, shuffle=False)
    with pytest.warns(UserWarning, match="stream generator will be converted"):
        pieces = with_classes_timeline(pieces)
    grown.train(pieces)
    assert grown.n_samples == 66
    assert model[1].classifier.weight.shape == (10, 64)
    assert grown.optimizer.state[model[1].classifier.weight]["trace"].shape == (10, 64)


def test_all_classes_in_every_experience() -> None:
    """As in CORe50's new-instances scenario."""
    experience = make_stream("class_split", classes_per_experience=10, samples_per_experience=90, labels="global")
    dataset = experience.train_stream[0].dataset
    benchmark = new_instances_benchmark(dataset, dataset, num_experiences=3, seed=0)
    steps = Steps()
    strategy = learner(small_network(), steps)
    strategy.train(benchmark.train_stream)
    assert steps.steps == list(range(90))
    assert sorted(set(steps.experiences)) == [0, 1, 2]


def write_mnist(root: Path) -> None:
    """Two images of each class, for training and for testing, in MNIST's own format."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images = (np.arange(20 * 28 * 28) * 7 % 256).astype(np.uint8).reshape(20, 28, 28)
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(20) % 10))


@pytest.mark.parametrize(
    "make",
    [
        lambda root: SplitMNIST(5, dataset_root=root, seed=0),
        lambda root: SplitMNIST(5, dataset_root=root, seed=0, return_task_id=True),
        lambda root: PermutedMNIST(2, dataset_root=root, seed=0),
    ],
    ids=["SplitMNIST", "SplitMNIST with task labels", "PermutedMNIST"],
)
def test_classic_benchmarks(make: Any, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    benchmark = make(tmp_path)
    strategy = learner(MLP(10, (1, 28, 28), hidden=(8,)))
    strategy.train(benchmark.train_stream)
    assert strategy.n_samples == sum(len(experience.dataset) for experience in benchmark.train_stream) > 0
    strategy.eval(benchmark.test_stream)
