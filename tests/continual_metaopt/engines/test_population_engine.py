"""The population engine against its plain twin: each replica alone, by the torch engine, on the same samples."""

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from continual_metaopt.engines import torch_engine
from continual_metaopt.engines.observations import Diverged, Observations
from continual_metaopt.engines.population_engine import Population
from continual_metaopt.networks.losses import HalfSquaredError
from continual_metaopt.optim.base_updates import BASE_UPDATES
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.meta_updates import META_UPDATES
from continual_metaopt.optim.metaoptimize import MetaOptimize

pytestmark = pytest.mark.slow  # together

STEPS = 200
RECORD_EVERY = 10
SHAPE = (2, 6, 5)  # channels, height and width

# What replicas may differ in; the bounds of the last are so tight that its step sizes meet them.
SETTINGS: list[dict[str, Any]] = [
    {"lr": 1e-3, "weight_decay": 0.1, "gamma": 0.9},
    {"lr": 3e-4, "weight_decay": 0.0, "meta_lr": 0.0},
    {"lr": 1e-3, "gamma": 1.0, "meta_lr": 0.02, "lr_bounds": (9.9e-4, 1.01e-3)},
]
# Every base and every meta update at least once.
PAIRS = [
    ("sgd", "sgd"),
    ("sgdm", "rmsprop"),
    ("rmsprop", "lion"),
    ("adamw", "adam"),
    ("lion", "rmsprop_released"),
    ("sgdm_released", "lion"),
    ("rmsprop_released", "adam_released"),
    ("adamw_released", "adam_released"),
]


def mlp(hidden: int = 7, n_outputs: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(2 * 6 * 5, hidden), nn.Tanh(), nn.Linear(hidden, n_outputs, bias=False)
    )


def cnn(channels: int = 3, n_outputs: int = 4) -> nn.Module:
    # normalised before the convolution: after it, its bias would have no gradient but rounding errors
    return nn.Sequential(
        nn.BatchNorm2d(2),
        nn.Conv2d(2, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(channels * 6, n_outputs),
    )


class Twins:
    """Replicas as a population, and as learners of their own."""

    def __init__(
        self,
        network: Callable[[], nn.Module] = mlp,
        dtype: torch.dtype = torch.float64,
        settings: Sequence[dict[str, Any]] = SETTINGS,
        granularity: Any = "blockwise",
        criterion: nn.Module | None = None,
        device: str = "cpu",
        **common: Any,
    ) -> None:
        self.dtype, self.criterion, self.device = dtype, criterion or nn.CrossEntropyLoss(), device
        self.replicas = []
        for seed, options in enumerate(settings):
            torch.manual_seed(seed)
            model = network().to(dtype)
            self.replicas.append((model, MetaOptimize(blocks(model, granularity), **(common | options))))
        self.singles = copy.deepcopy(self.replicas)
        self.observed = [Observations(0, 0) for _ in settings]
        self.diverged: dict[int, Diverged] = {}
        self.population = Population(self.replicas, criterion, device)
        self.seen: list[list[Observations]] = [[] for _ in settings]
        self.random = torch.Generator().manual_seed(1)

    def samples(self, n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(len(self.replicas), n, *SHAPE, generator=self.random).to(self.dtype)
        y = torch.randint(4, (len(self.replicas), n), generator=self.random)
        if isinstance(self.criterion, nn.MSELoss | HalfSquaredError):
            return x, nn.functional.one_hot(y, 4).to(self.dtype)
        return x, y

    def learn(self, x: Tensor, y: Tensor) -> None:
        portion = self.population.learn(x, y)
        for r, observed in enumerate(self.seen):
            observed.append(portion.observations(r, 0, RECORD_EVERY))
            if r not in self.diverged:
                self.learn_alone(r, x, y)

    def learn_alone(self, r: int, x: Tensor, y: Tensor) -> None:
        model, optimizer = self.singles[r]
        samples = zip(x[r].split(1), y[r].split(1), strict=True)
        try:
            while torch_engine.learn(
                model, optimizer, self.criterion, samples, self.observed[r], RECORD_EVERY, optimizer.step
            ):
                pass
        except Diverged as error:
            self.diverged[r] = error

    def compare(self, tolerance: float) -> None:
        """All that was seen, and all that was learned."""
        close = {"rtol": tolerance, "atol": tolerance}
        self.population.write_back()
        assert {r: str(e) for r, e in self.population.ended.items()} == {r: str(e) for r, e in self.diverged.items()}
        for r, alone in enumerate(self.observed):
            parts = self.seen[r]
            for name in ("correct", "loss", "step_sizes", "measurements"):
                ours, theirs = [row for part in parts for row in getattr(part, name)], getattr(alone, name)
                if name in ("step_sizes", "measurements"):
                    assert [row[:-1] for row in ours] == [row[:-1] for row in theirs]
                    ours, theirs = ([row[-1] for row in rows] for rows in (ours, theirs))
                assert ours == (theirs if name == "correct" else pytest.approx(theirs, rel=tolerance, abs=tolerance))
            (model, optimizer), (expected_model, expected) = self.replicas[r], self.singles[r]
            torch.testing.assert_close(model.state_dict(), expected_model.state_dict(), **close)
            ours, theirs = optimizer.state_dict(), expected.state_dict()
            assert ours["param_groups"] == approximately(theirs["param_groups"], tolerance)
            assert ours["state"].keys() >= theirs["state"].keys()  # alone, there is none before the first step
            for index, state in theirs["state"].items():
                assert list(ours["state"][index]) == list(state)
                for key, value in state.items():
                    assert type(ours["state"][index][key]) is type(value)
                    torch.testing.assert_close(ours["state"][index][key], value, **close)


def approximately(value: Any, tolerance: float) -> Any:
    """The same nested lists and dictionaries, their numbers compared with a tolerance."""
    if isinstance(value, dict):
        return {key: approximately(item, tolerance) for key, item in value.items()}
    if isinstance(value, list):
        return [approximately(item, tolerance) for item in value]
    return pytest.approx(value, rel=tolerance, abs=tolerance) if isinstance(value, float) else value


def agree(tolerance: float, portions: Sequence[int] = (1, 49, 150), **options: Any) -> Twins:
    twins = Twins(**options)
    for n in portions:
        twins.learn(*twins.samples(n))
    twins.compare(tolerance)
    return twins


# ---------------------------------------------------------------------------------------------------- the same learning


@pytest.mark.parametrize(("base", "meta"), PAIRS)
def test_each_replica_learns_as_if_it_were_alone(base: str, meta: str) -> None:
    twins = agree(1e-9, base=base, meta=meta)

    learned, fixed, bounded = (optimizer.step_size_report().values() for _, optimizer in twins.replicas)
    assert 1e-3 not in learned
    assert set(fixed) == {3e-4}
    assert all(9.9e-4 <= value <= 1.01e-3 for value in bounded)


@pytest.mark.parametrize("base", list(BASE_UPDATES))
@pytest.mark.parametrize("meta", list(META_UPDATES))
def test_each_replica_learns_as_if_it_were_alone_by_every_rule(base: str, meta: str) -> None:
    agree(1e-9, base=base, meta=meta)
    agree(1e-9, base=base, meta=meta, network=cnn, granularity="scalar")


@pytest.mark.parametrize("network", [mlp, cnn])
def test_single_precision_agrees_to_rounding_errors(network: Any) -> None:
    agree(1e-4, network=network, dtype=torch.float32, portions=[100])


@pytest.mark.parametrize("granularity", ["blockwise", "scalar", "layerwise"])
def test_convolutions_and_their_running_statistics(granularity: str) -> None:
    agree(1e-9, network=cnn, granularity=granularity, portions=[100])


def test_step_sizes_that_all_groups_share() -> None:
    agree(1e-9, step_sizes="scalar", portions=[100])


def test_step_sizes_meet_their_bounds() -> None:
    twins = agree(1e-9, portions=[100])

    met = {value for _, _, value in twins.seen[2][0].step_sizes}
    assert met >= {9.9e-4, 1.01e-3}


@pytest.mark.parametrize("settings", [SETTINGS[1:2] * 2, SETTINGS[:1]], ids=["all fixed", "one replica"])
def test_populations_of_one_kind(settings: list[dict[str, Any]]) -> None:
    agree(1e-9, settings=settings, portions=[60])


@pytest.mark.parametrize("criterion", [nn.MSELoss(), HalfSquaredError()])
def test_squared_errors(criterion: nn.Module) -> None:
    twins = agree(1e-9, criterion=criterion, portions=[60])

    assert twins.seen[0][0].correct == [None] * 60


@pytest.mark.parametrize("seed", range(4))
def test_random_shapes(seed: int) -> None:
    choose = random.Random(seed)
    width, n_outputs = choose.randint(1, 12), choose.randint(4, 9)
    network = choose.choice([mlp, cnn])
    settings = [
        {
            "lr": 10 ** choose.uniform(-4, -2.5),
            "meta_lr": choose.choice([0.0, 1e-3, 1e-2]),
            "gamma": choose.choice([0.0, 0.9, 0.999]),
            "weight_decay": choose.choice([0.0, 0.01]),
        }
        for _ in range(choose.randint(1, 6))
    ]
    agree(1e-9, network=lambda: network(width, n_outputs), settings=settings, portions=[3, 40])


def test_groups_with_settings_of_their_own() -> None:
    def groups(model: nn.Module, **options: Any) -> MetaOptimize:
        first, second = blocks(model)
        return MetaOptimize([first | {"meta_lr": 0.0, "lr": 1e-2}, second | {"gamma": 0.5}], **options)

    for step_sizes in ("group", "scalar"):
        twins = Twins(settings=[{}])
        model = twins.replicas[0][0]
        lr = {"lr": 1e-2} if step_sizes == "scalar" else {}
        twins.replicas = [(model, groups(model, step_sizes=step_sizes, **lr))]
        twins.singles, twins.population = copy.deepcopy(twins.replicas), Population(twins.replicas)
        twins.learn(*twins.samples(40))
        twins.compare(1e-9)


def test_parameters_that_are_not_trained_stay() -> None:
    twins = Twins()
    for replicas in (twins.replicas, twins.singles):
        for i, (model, optimizer) in enumerate(replicas):
            model[1].weight.requires_grad_(False)
            replicas[i] = (model, MetaOptimize(blocks(model), 1e-3, base=optimizer.base))
    before = twins.replicas[1][0][1].weight.clone()
    twins.population = Population(twins.replicas)
    twins.learn(*twins.samples(20))
    twins.compare(1e-9)
    assert torch.equal(twins.replicas[1][0][1].weight, before)


def test_portions_do_not_matter() -> None:
    whole, pieces = Twins(dtype=torch.float32), Twins(dtype=torch.float32)
    x, y = whole.samples(50)
    whole.population.learn(x, y)
    for n in range(0, 50, 10):
        pieces.population.learn(x[:, n : n + 10], y[:, n : n + 10])
    for twins in (whole, pieces):
        twins.population.write_back()
    for (model, optimizer), (other, expected) in zip(pieces.replicas, whole.replicas, strict=True):
        torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)
        assert optimizer.state_dict()["param_groups"] == expected.state_dict()["param_groups"]


# ------------------------------------------------------------------------------------------ going on, alone or together


@pytest.mark.parametrize("base", ["adamw", "sgdm_released"])
def test_a_replica_that_goes_on_alone_goes_on_as_if_it_had_always_been(base: str) -> None:
    twins = agree(1e-9, base=base, portions=[30])
    together, twins.observed = twins.observed, [Observations(0, 30) for _ in twins.replicas]
    x, y = twins.samples(30)
    for r in range(3):
        twins.learn_alone(r, x, y)
    expected, twins.observed = twins.observed, [Observations(0, 30) for _ in twins.replicas]
    twins.replicas, twins.singles = twins.singles, twins.replicas
    for r in range(3):
        twins.learn_alone(r, x, y)
        assert twins.observed[r].loss == pytest.approx(expected[r].loss, rel=1e-9)
    assert all(len(observed) == 30 for observed in together)


def test_replicas_that_learned_alone_go_on_together() -> None:
    twins = Twins()
    x, y = twins.samples(30)
    for r in range(3):
        twins.learn_alone(r, x, y)
        twins.singles[r][1].param_groups[0]["lr"] *= 0.999  # as a scheduler may
        twins.observed[r] = Observations(0, 30)
    twins.replicas = copy.deepcopy(twins.singles)
    twins.population = Population(twins.replicas, n_samples=30)
    twins.learn(*twins.samples(30))
    twins.compare(1e-9)


def test_its_network_has_a_replicas_current_weights() -> None:
    twins = Twins(network=cnn)
    twins.learn(*twins.samples(20))
    x = twins.samples(1)[0][:, 0]
    for r, (model, _) in enumerate(twins.singles):
        torch.testing.assert_close(twins.population.network(r).eval()(x), model.eval()(x), rtol=1e-9, atol=1e-9)


# ----------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("network", [mlp, cnn])
@pytest.mark.parametrize("bad", [{1: 25}, {0: 0, 2: 39}, {0: 17, 1: 17, 2: 21}])
def test_a_replica_that_diverges_stops_and_the_others_go_on(network: Any, bad: dict[int, int]) -> None:
    twins = Twins(network=network)
    x, y = twins.samples(40)
    for r, at in bad.items():
        x[r, at] = float("nan")
    twins.learn(x, y)
    twins.learn(*twins.samples(30))
    twins.population.write_back()
    if network is cnn:
        for r in bad:  # alone, a bad sample reaches the running statistics before its loss is seen
            for name, buffer in twins.singles[r][0].named_buffers():
                buffer.copy_(dict(twins.replicas[r][0].named_buffers())[name])
    twins.compare(1e-9)
    assert {r: (e.step, e.reason) for r, e in twins.population.ended.items()} == {
        r: (at, "the loss is nan") for r, at in bad.items()
    }


def test_a_meta_gradient_that_is_not_finite_ends_a_replica() -> None:
    twins = agree(1e-9, portions=[12])
    for replicas in (twins.replicas, twins.singles):
        model, optimizer = replicas[2]
        optimizer.state[model[3].weight]["trace"].fill_(float("inf"))
    twins.population = Population(twins.replicas, n_samples=12)
    twins.learn(*twins.samples(5))
    twins.learn(*twins.samples(5))
    assert list(twins.population.ended) == [2]
    assert str(twins.population.ended[2]).startswith("the meta gradient of block '3' is ")
    assert twins.population.ended[2].step == 12
    assert twins.seen[2][-2].loss == twins.seen[2][-1].loss == []
    twins.diverged.update(twins.population.ended)
    twins.compare(1e-9)


# --------------------------------------------------------------------------------------------------- on the device only


class Recording(TorchDispatchMode):
    """Stands in for a CUDA graph: repeats the same operations on the same memory, whatever the host does meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.mark.parametrize(("base", "meta"), PAIRS)
def test_the_step_can_be_captured(base: str, meta: str) -> None:
    """It neither needs values on the host, nor has shapes that depend on values, nor anything that is not in place."""
    twins = Twins(network=cnn, base=base, meta=meta)
    twins.learn(*twins.samples(2))
    before = twins.population._copies()
    with Recording() as graph:
        twins.population._step()
    names = {func.__name__.split(".")[0] for func, *_ in graph.calls}
    assert "convolution_backward" in names
    assert not names & {"_local_scalar_dense", "nonzero", "masked_select", "index", "is_nonzero"}
    twins.population._restore(before)
    twins.population._graph = graph
    twins.learn(*twins.samples(40))
    twins.compare(1e-9)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_cuda
@pytest.mark.parametrize("network", [mlp, cnn])
@pytest.mark.parametrize(("base", "meta"), PAIRS)
def test_captured_steps_on_a_gpu_agree_with_single_learners(network: Any, base: str, meta: str) -> None:
    twins = agree(1e-8, network=network, base=base, meta=meta, device="cuda")

    assert twins.population._graph is not None


@needs_cuda
def test_a_replica_that_diverges_on_a_gpu_stops_and_the_others_go_on() -> None:
    twins = Twins(device="cuda")
    x, y = twins.samples(40)
    x[1, 25] = float("nan")
    twins.learn(x, y)
    twins.learn(*twins.samples(30))
    twins.compare(1e-8)


# ------------------------------------------------------------------------------------------------------------- mistakes


def replica(model: nn.Module | None = None, granularity: Any = "blockwise", **options: Any) -> Any:
    model = model or mlp()
    return model, MetaOptimize(blocks(model, granularity), **options)


class Dropping(nn.Sequential):
    """Draws random numbers while it learns."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Dropout(0.5), nn.Linear(60, 4))


class Ignoring(nn.Linear):
    """Has a parameter that it does not use."""

    def __init__(self) -> None:
        super().__init__(60, 4)
        self.spare = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


def one_step_ahead() -> Any:
    model, optimizer = replica()
    model(torch.ones(1, *SHAPE)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [], "a population needs at least one replica"),
        (
            lambda: [replica(), replica(mlp(hidden=8))],
            r"replica 1 differs from replica 0 in its network: \(1\): Linear\(in_features=60, out_features=8, "
            r"bias=True\) instead of \(1\): Linear\(in_features=60, out_features=7, bias=True\)",
        ),
        (
            lambda: [replica(), replica(mlp().double())],
            r"replica 1 differs from replica 0 in its parameters: 1.weight float64 \[7, 60\] instead of "
            r"1.weight float32 \[7, 60\]",
        ),
        (
            lambda: [replica(base="lion"), replica()],
            r"replica 1 differs from replica 0 in its base update: AdamW\(.+\) instead of Lion\(betas=\(0.9, 0.99\)\)",
        ),
        (
            lambda: [replica(), replica(meta="sgd")],
            r"replica 1 differs from replica 0 in its meta update: SGD\(\) instead of Adam\(.+\)",
        ),
        (
            lambda: [replica(), replica(), replica(granularity="scalar")],
            "replica 2 differs from replica 0 in its blocks: all: 1.weight, 1.bias, 3.weight instead of "
            "1: 1.weight, 1.bias",
        ),
        (
            lambda: [replica(), replica(step_sizes="scalar")],
            "replica 1 differs from replica 0 in its step_sizes: scalar instead of group",
        ),
        (
            lambda: [replica(), one_step_ahead()],
            "replicas can only go on together after equally many steps, but the step of replica 1 is 1, and of "
            "replica 0 it is 0",
        ),
        (lambda: [replica()] * 2, None),
        (
            lambda: [replica(), (model := mlp(), torch.optim.SGD(model.parameters(), 0.1))],
            "the optimizer of replica 1 is SGD, not MetaOptimize",
        ),
    ],
)
def test_replicas_that_cannot_learn_side_by_side(make: Any, message: str | None) -> None:
    replicas = make()
    with pytest.raises(ValueError, match=f"^{message}$" if message else "share their parameter '1.weight'$"):
        Population(replicas)


@pytest.mark.parametrize(
    ("network", "x", "y", "message"),
    [
        (mlp, (1, 3), [[0, 1, 4]], r"^label 4 does not fit the network's 4 outputs; size the network with n_outputs="),
        (mlp, (1, 2), [[0, 1, 1]], r"^1 replicas cannot learn from x \[1, 2, 2, 6, 5\] and y \[1, 3\]$"),
        (mlp, (1, 0), [[]], r"^1 replicas cannot learn from x \[1, 0, 2, 6, 5\] and y \[1, 0\]$"),
        (Dropping, (1, 1), [[0]], "^the network draws random numbers while it learns, as dropout does; "),
        (Ignoring, (1, 1), [[0]], "^the network does not use its parameter 'spare'; leave it out of the optimizer$"),
    ],
)
def test_samples_and_networks_that_do_not_fit(network: Any, x: tuple[int, ...], y: Any, message: str) -> None:
    population = Population([replica(network())])
    before = [tensor.clone() for tensor in population._tensors()]
    with pytest.raises(ValueError, match=message):
        population.learn(torch.ones(*x, *SHAPE), torch.tensor(y))
    assert all(torch.equal(a, b) for a, b in zip(population._tensors(), before, strict=True))


@pytest.mark.parametrize("criterion", [nn.L1Loss(), nn.CrossEntropyLoss(reduction="none")])
def test_losses_that_it_does_not_know(criterion: nn.Module) -> None:
    with pytest.raises(
        ValueError, match=r"^a population learns with CrossEntropyLoss, MSELoss or HalfSquaredError, not .+\)$"
    ):
        Population([replica()], criterion)
