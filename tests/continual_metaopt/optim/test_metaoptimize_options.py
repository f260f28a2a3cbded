"""Options of MetaOptimize beyond one log step size per group, with numbers worked out by hand."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from continual_metaopt.engines.compiled.rules import why_no_kernels
from continual_metaopt.optim.base_updates import BASE_UPDATES
from continual_metaopt.optim.metaoptimize import MetaOptimize, NonFiniteMetaGradient, metaoptimize
from continual_metaopt.optim.protocol import geometric_mean, quantiles_of, step_sizes_of
from continual_metaopt.optim.registry import learns_step_sizes
from continual_metaopt.optim.settings import MOMENTUM_BOUNDS, WEIGHT_DECAY_BOUNDS

from ..conftest import exactly


def parameter(*values: Any) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def learner(*params: nn.Parameter, **options: Any) -> MetaOptimize:
    """SGD with SGD as meta update, α = 0.1, η = 0.5, γ = 0.9, no weight decay unless asked for."""
    settings = {"base": "sgd", "meta": "sgd", "meta_lr": 0.5, "gamma": 0.9, "weight_decay": 0.0}
    return MetaOptimize(list(params), **{"lr": 0.1} | settings | options)


def step(optimizer: MetaOptimize, *gradients: Any) -> None:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = torch.as_tensor(gradient, dtype=param.dtype).expand(param.shape).clone()
    optimizer.step()


# How many weights share a step size

GRADIENTS = [[[1.0, 2.0], [3.0, -1.0]], [[2.0, 1.0], [-1.0, 0.0]]]
# h = −0.1 g₁ after the first step; z = h g₂ of the weights: −0.2, −0.2, 0.3, 0; β changes by −0.5 z.
BY_GRANULARITY = {
    "tensor": [0.05],
    "node": [0.2, -0.15],
    "weight": [0.1, 0.1, -0.15, 0.0],
}


@pytest.mark.parametrize("granularity", BY_GRANULARITY)
def test_step_sizes_of_a_matrix_by_hand(granularity: Any) -> None:
    p = parameter([0.0, 0.0], [0.0, 0.0])
    optimizer = learner(p, step_sizes=granularity)
    for gradient in GRADIENTS:
        step(optimizer, gradient)

    expected = torch.tensor(BY_GRANULARITY[granularity], dtype=torch.float64)
    (report,) = optimizer.step_size_report().values()
    torch.testing.assert_close(report, 0.1 * expected.exp(), rtol=1e-14, atol=0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * math.exp(expected.mean()), rel=1e-14)
    assert step_sizes_of(optimizer) == pytest.approx({"group0": 0.1 * math.exp(expected.mean())}, rel=1e-14)
    assert optimizer.meta_gradient_report() == pytest.approx({"group0": -0.1}, rel=1e-14)
    # the third step is taken with them
    before = p.detach().clone()
    step(optimizer, 1.0)
    shape = {"tensor": (1, 1), "node": (2, 1), "weight": (2, 2)}[granularity]
    torch.testing.assert_close(p.detach(), before - 0.1 * expected.exp().view(shape).expand(2, 2))


@pytest.mark.parametrize("granularity", BY_GRANULARITY)
def test_before_the_first_step_every_step_size_is_the_initial_one(granularity: Any) -> None:
    optimizer = learner(parameter([0.0, 0.0], [0.0, 0.0]), parameter(1.0, 2.0), step_sizes=granularity)
    n = {"tensor": 2, "node": 4, "weight": 6}[granularity]
    assert torch.as_tensor(optimizer.step_size_report()["group0"]).equal(torch.full((n,), 0.1, dtype=torch.float64))


@pytest.mark.parametrize("granularity", BY_GRANULARITY)
def test_writing_lr_rescales_many_step_sizes(granularity: Any) -> None:
    optimizer = learner(parameter([0.0, 0.0], [0.0, 0.0]), step_sizes=granularity)
    for gradient in GRADIENTS:
        step(optimizer, gradient)
    (before,) = optimizer.step_size_report().values()
    optimizer.param_groups[0]["lr"] *= 0.5
    (after,) = optimizer.step_size_report().values()
    torch.testing.assert_close(after, before * 0.5, rtol=1e-13, atol=0)
    optimizer.param_groups[0]["lr"] *= 100
    (bounded,) = optimizer.step_size_report().values()
    torch.testing.assert_close(bounded, (before * 50).clamp(max=1.0), rtol=1e-13, atol=0)


def test_a_tensor_without_a_gradient_keeps_its_initial_step_size() -> None:
    used, unused = parameter(1.0), parameter(1.0)
    optimizer = learner(used, unused, step_sizes="tensor")
    for _ in range(2):  # z = −0.1
        used.grad = torch.ones_like(used)
        optimizer.step()
    expected = torch.tensor([0.1 * math.exp(0.05), 0.1], dtype=torch.float64)
    torch.testing.assert_close(optimizer.step_size_report()["group0"], expected, rtol=1e-14, atol=0)


def test_one_group_shares_and_another_does_not() -> None:
    def groups() -> list[dict[str, Any]]:
        kinds = {"a": "scalar", "b": "weight", "c": "scalar"}
        return [{"params": [parameter(1.0, 2.0)], "name": n, "step_sizes": kind} for n, kind in kinds.items()]

    optimizer = learner(*groups())
    for gradient in (1.0, 2.0, -1.0):
        step(optimizer, [gradient, -gradient], [gradient, 0.0], [gradient, 1.0])
    report = optimizer.step_size_report()
    assert list(report) == ["a+c", "b"]
    assert isinstance(report["a+c"], float)
    assert report["a+c"] == optimizer.param_groups[0]["lr"] == optimizer.param_groups[2]["lr"] != 0.1
    assert isinstance(report["b"], Tensor)
    assert report["b"][1] == 0.1 != report["b"][0]


def test_groups_of_an_optimizer_whose_step_size_is_shared_may_have_their_own() -> None:
    groups = [{"params": [parameter(1.0)]}, {"params": [parameter(1.0)], "step_sizes": "group", "lr": 0.2}]
    optimizer = learner(*groups, step_sizes="scalar")
    assert optimizer.step_size_report() == {"group0": 0.1, "group1": 0.2}


@pytest.mark.parametrize("granularity", BY_GRANULARITY)
def test_many_step_sizes_without_meta_step_are_the_base_update(granularity: Any) -> None:
    weights = []
    for make in (
        lambda p: MetaOptimize([p], 0.01, meta_lr=0, step_sizes=granularity),
        lambda p: torch.optim.AdamW([p], 0.01),
    ):
        p = nn.Parameter(torch.arange(6.0).view(2, 3))
        optimizer = make(p)
        for t in range(20):
            p.grad = torch.sin(p.detach() + t)
            optimizer.step()
        weights.append(p.detach())
    assert weights[0].equal(weights[1])


@pytest.mark.parametrize(
    ("granularity", "names"),
    [("tensor", ["0.weight", "0.bias", "2.weight", "2.bias"]), ("node", ["0", "2"]), ("weight", ["0", "2"])],
)
def test_networks_are_divided_down_to_their_weights(granularity: Any, names: list[str]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = metaoptimize(model, step_sizes=granularity)
    report = optimizer.step_size_report()
    assert list(report) == names
    sizes = {"tensor": [1] * 4, "node": [8, 4], "weight": [16, 10]}[granularity]
    assert [torch.as_tensor(value).numel() for value in report.values()] == sizes


# Order, parametrisation, discount


def test_the_meta_update_may_come_first() -> None:
    p = parameter(0.0)
    optimizer = learner(p, update_order="meta_first")
    step(optimizer, 1.0)
    step(optimizer, 2.0)  # z = −0.1 · 2, β + 0.1, and the step is taken with it
    assert p.item() == pytest.approx(-0.1 - 2 * 0.1 * math.exp(0.1), rel=1e-14)
    assert optimizer.state[p]["trace"].item() == pytest.approx(-0.09 - 0.2 * math.exp(0.1), rel=1e-14)


@pytest.mark.parametrize("granularity", ["group", "weight"])
def test_additive_step_sizes_by_hand(granularity: Any) -> None:
    p = parameter(2.0)
    optimizer = learner(p, parametrisation="linear", meta_lr=0.01, weight_decay=0.5, step_sizes=granularity)
    step(optimizer, 1.0)  # h = −(1 + 0.5 · 2) = −2;  w = 2 − 0.1 · 2 = 1.8
    step(optimizer, 3.0)  # z = −6;  h = 0.9 (1 − 0.05) h − (3 + 0.5 · 1.8);  α = 0.1 + 0.01 · 6
    assert optimizer.state[p]["trace"].item() == pytest.approx(-1.71 - 3.9, rel=1e-14)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.16, rel=1e-14)
    step(optimizer, 1e4)  # z = −5.61e4: up to the bound
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0, rel=1e-14)


@pytest.mark.parametrize("granularity", ["group", "weight"])
def test_meta_gradients_are_summed_between_meta_updates(granularity: Any) -> None:
    p = parameter(0.0)
    optimizer = learner(p, meta_every=3, step_sizes=granularity, gamma=0.0)
    seen = []
    for gradient in (1.0, 2.0, 3.0, 4.0, 5.0):
        step(optimizer, gradient)
        seen.append(optimizer.param_groups[0]["lr"])
    # z = 0, −0.1 · 2, −0.2 · 3, and then −0.3 · 4 and −… wait for the next update
    assert seen == pytest.approx([0.1, 0.1, *[0.1 * math.exp(0.5 * 0.8)] * 3], rel=1e-14)
    resumed = learner(p, meta_every=3, step_sizes=granularity, gamma=0.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for either in (optimizer, resumed):
        weight = p.detach().clone()
        step(either, 6.0)
        with torch.no_grad():
            p.copy_(weight)
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] != seen[-1]


@pytest.mark.parametrize("options", [{}, {"trace": "dutch", "gamma": "auto"}, {"trace": "l"}])
def test_a_meta_update_at_every_step_is_the_default_bit_for_bit(options: dict[str, Any]) -> None:
    found = []
    for every in ({}, {"meta_every": 1, "meta_weight_decay": 0.0}):
        p = parameter(0.5, -1.0)
        optimizer = learner(p, base="adamw", meta="adam", **options, **every)
        for t in range(20):
            optimizer.zero_grad()
            loss = (p - math.sin(t)).pow(2).sum()
            if not optimizer.wants_graph:
                loss.backward()
            optimizer.step(lambda loss=loss: loss)
        found.append((p.detach().clone(), optimizer.param_groups[0]["lr"]))
    assert found[0][0].equal(found[1][0])
    assert found[0][1] == found[1][1] != 0.1


# Decay of log step sizes


@pytest.mark.parametrize("granularity", ["group", "weight"])
@pytest.mark.parametrize("parametrisation", ["log", "linear"])
def test_meta_weight_decay_by_hand(granularity: Any, parametrisation: Any) -> None:
    optimizer = learner(
        parameter(0.0), meta_weight_decay=0.2, step_sizes=granularity, parametrisation=parametrisation, gamma=0.0
    )
    seen = []
    for gradient in (0.1, 0.2, 0.3):
        step(optimizer, gradient)
        seen.append(optimizer.param_groups[0]["lr"])
    # β ← (1 − 0.5 · 0.2) β − 0.5 z, and z = h g with h of the last step: −α g, or −g where β is α
    if parametrisation == "log":
        first = 0.9 * math.log(0.1)
        second = 0.9 * first + 0.5 * (0.1 * 0.1) * 0.2
        expected = [math.exp(beta) for beta in (first, second, 0.9 * second + 0.5 * (math.exp(first) * 0.2) * 0.3)]
    else:
        expected = [0.09, 0.081 + 0.5 * 0.1 * 0.2, 0.9 * 0.091 + 0.5 * 0.2 * 0.3]
    assert seen == pytest.approx(expected, rel=1e-13)


def test_meta_weight_decay_acts_with_meta_updates_and_within_their_bound() -> None:
    optimizer = learner(parameter(0.0), meta_weight_decay=0.2, meta_every=2, max_meta_change=0.05)
    for expected in (0.1, 0.1 * math.exp(0.05), 0.1 * math.exp(0.05), 0.1 * math.exp(0.1)):
        step(optimizer, 0.0)  # Δβ would be 0.23
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-14)


def plain_learner(gradients: list[float], every: int, decay: float) -> list[float]:
    """Step sizes of a single weight by AdamW and Adam, written out anew: α = 1e-4, η = 0.5, γ = 0.9, κ = 0.3."""
    w, h, beta, m, v, mean, square, pending, n, seen = 1.0, 0.0, math.log(1e-4), 0.0, 0.0, 0.0, 0.0, 0.0, 0, []
    for t, g in enumerate(gradients, 1):
        alpha, pending = math.exp(beta), pending + h * g
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        delta = alpha * (m / (1 - 0.9**t) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.3 * w)
        h, w = 0.9 * (1 - 0.3 * alpha) * h - delta, w - delta
        if t % every == 0:
            n += 1
            mean, square = 0.9 * mean + 0.1 * pending, 0.999 * square + 0.001 * pending * pending
            change = 0.5 * mean / (1 - 0.9**n) / (math.sqrt(square / (1 - 0.999**n)) + 1e-8)
            beta, pending = (1 - 0.5 * decay) * beta - change, 0.0
            beta = min(beta, 0.0)  # lr_bounds end at 1
        seen.append(math.exp(beta))
    return seen


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_frequency_and_decay_of_meta_updates_are_those_of_a_plain_learner(every: int, decay: float) -> None:
    gradients = [math.sin(1.7 * t) + 0.2 for t in range(40)]
    optimizer = learner(
        parameter(1.0), lr=1e-4, base="adamw", meta="adam", weight_decay=0.3, meta_every=every, meta_weight_decay=decay
    )
    seen = []
    for gradient in gradients:
        step(optimizer, gradient)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx(plain_learner(gradients, every, decay), rel=1e-9)
    assert len(set(seen)) > 10


# Guards


@pytest.mark.parametrize("granularity", ["group", "weight"])
def test_a_meta_update_is_bounded(granularity: Any) -> None:
    optimizer = learner(parameter(0.0), max_meta_change=0.25, step_sizes=granularity)
    step(optimizer, 1.0)
    step(optimizer, 100.0)  # Δβ = 0.5 · 10
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * math.exp(0.25), rel=1e-14)
    step(optimizer, -100.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1, rel=1e-14)


# Weight decay and momentum


@pytest.mark.parametrize("granularity", ["group", "weight"])
def test_a_learned_weight_decay_by_hand(granularity: Any) -> None:
    p = parameter(2.0)
    optimizer = learner(p, learn=("weight_decay",), weight_decay=0.5, step_sizes=granularity)
    step(optimizer, 1.0)  # h = −0.1 · 0.5 · 2 = −0.1;  w = 2 − 0.1 (1 + 1)
    step(optimizer, 3.0)  # z = −0.3;  κ = 0.5 exp(0.15);  h = 0.9 · 0.95 h − 0.05 · 1.8;  w = 1.8 − 0.1 (3 + 0.9)
    kappa = 0.5 * math.exp(0.15)
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(kappa, rel=1e-14)
    assert optimizer.meta_parameter_report()["group0"] == {"weight_decay": pytest.approx(kappa, rel=1e-14)}
    assert optimizer.state[p]["trace_weight_decay"].item() == pytest.approx(-0.0855 - 0.09, rel=1e-14)
    assert p.item() == pytest.approx(1.41, rel=1e-14)
    assert step_sizes_of(optimizer) == {"group0": 0.1}
    assert "trace" not in optimizer.state[p]
    optimizer.param_groups[0]["weight_decay"] = 0.25
    step(optimizer, 0.0)
    assert p.item() == pytest.approx(1.41 * (1 - 0.1 * 0.25), rel=1e-14)


@pytest.mark.parametrize("granularity", ["group", "weight"])
def test_a_learned_momentum_by_hand(granularity: Any) -> None:
    p = parameter(0.0)
    optimizer = learner(p, base="sgdm", learn=("momentum",), step_sizes=granularity)
    step(optimizer, 1.0)  # m = 1
    step(optimizer, 3.0)  # z = 0;  m = 3.9;  n = 0.9 · 0.1 · 1 = 0.09;  h = −0.009
    assert optimizer.state[p]["trace_momentum"].item() == pytest.approx(-0.009, rel=1e-12)
    assert optimizer.param_groups[0]["momentum"] == 0.9
    step(optimizer, 20.0)  # z = −0.18;  β + 0.09
    momentum = 1 / (1 + math.exp(-math.log(9) - 0.09))
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(momentum, rel=1e-14)
    assert optimizer.meta_parameter_report()["group0"] == {"momentum": pytest.approx(momentum, rel=1e-14)}
    step(optimizer, 0.0)  # m = ρ (0.9 · 3.9 + 20)
    assert optimizer.state[p]["momentum_buffer"].item() == pytest.approx(momentum * 23.51, rel=1e-13)


def test_adamw_with_a_momentum_that_changes_stays_an_average() -> None:
    """Under a constant gradient its direction is the gradient's sign, whatever the momentum was and is."""
    p = parameter(0.0)
    optimizer = learner(p, base="adamw", learn=("momentum",), meta_lr=1e-9)
    for t in range(30):
        optimizer.param_groups[0]["momentum"] = 0.5 if t < 15 else 0.99
        before = p.item()
        step(optimizer, 2.0)
        assert before - p.item() == pytest.approx(0.1, rel=1e-6)


def test_a_meta_gradient_of_another_kind_is_named() -> None:
    optimizer = learner(parameter(2.0), learn=("lr", "weight_decay"), weight_decay=0.5)
    step(optimizer, 1e200)
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    state["trace"].zero_()
    state["trace_weight_decay"].fill_(-1e200)
    message = "the meta gradient of block 'group0' for its weight_decay is -inf"
    with pytest.raises(NonFiniteMetaGradient, match=exactly(message)):
        step(optimizer, 1e200)


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"step_sizes": "nodes"},
            "unknown kind of step sizes 'nodes'. Did you mean 'node'? Known: group, node, scalar, tensor, weight",
        ),
        (
            {"step_sizes": "blockwise"},
            'step_sizes="blockwise" needs the network: write MetaOptimize(blocks(model, "blockwise"))',
        ),
        (
            {"update_order": "meta"},
            "unknown order of updates 'meta'. Did you mean 'meta_first'? Known: base_first, meta_first",
        ),
        ({"parametrisation": "sqrt"}, "unknown parametrisation 'sqrt'. Known: linear, log"),
        (
            {"learn": ("momenta",)},
            "unknown meta-parameter to learn 'momenta'. Did you mean 'momentum'? Known: lr, momentum, weight_decay",
        ),
        ({"learn": ()}, "learn must name what is to be learned, each once, not (); meta_lr=0 for nothing"),
        (
            {"learn": ("lr", "lr")},
            "learn must name what is to be learned, each once, not ('lr', 'lr'); meta_lr=0 for nothing",
        ),
        (
            {"learn": ("weight_decay",), "weight_decay": 0.0},
            "to learn the logarithm of weight_decay, start between 1e-10 and 10.0, not with 0.0",
        ),
        (
            {"meta_weight_decay": 0.1, "trace": "l"},
            'trace="l" goes with meta_weight_decay=0.0, not with 0.1; use trace="hessian_free" for that',
        ),
        ({"meta_every": 0}, "meta_every must be a whole number of steps, at least 1, but is 0"),
        ({"max_meta_change": 0.0}, "max_meta_change must be finite and positive, or None for no bound, but is 0.0"),
        *(
            ({name: value}, f"{name} must be finite and {sign}, but is {value}")
            for name, sign in (
                ("lr", "positive"),
                ("meta_lr", "not negative"),
                ("weight_decay", "not negative"),
                ("meta_weight_decay", "not negative"),
                ("max_meta_change", "positive, or None for no bound"),
                ("trace_memory_limit", "not negative, or None for no limit"),
            )
            for value in (math.inf, math.nan)
        ),
        (
            {"lr_bounds": (1e-10, math.inf)},
            "lr_bounds must be two finite positive numbers, the lower first, not (1e-10, inf)",
        ),
    ],
)
def test_wrong_options_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        learner(parameter(1.0), **options)


@pytest.mark.parametrize("base", sorted(BASE_UPDATES))
def test_only_smooth_momenta_can_be_learned(base: str) -> None:
    if base in ("sgdm", "adamw", "sgdm_released", "adamw_released"):
        assert learner(parameter(1.0), base=base, learn=["momentum"]).param_groups[0]["momentum"] == 0.9
        return
    message = (
        f"{BASE_UPDATES[base]()} has no momentum that could be learned; take sgdm, adamw, or one of their released "
        "forms (Lion's step is a sign, which does not change with the momentum but for jumps)"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        learner(parameter(1.0), base=base, learn=["momentum"])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            [{}, {"learn": ["weight_decay"]}],
            'step_sizes="scalar" means one step size for all groups, but their learn differ: '
            "('lr',) and ('weight_decay',); give them the same learn, or use step_sizes=\"group\"",
        ),
    ],
)
def test_wrong_options_of_groups_are_explained(groups: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        learner(*({"params": [parameter(1.0)]} | group for group in groups), step_sizes="scalar")


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (
            "weight_decay",
            -1.0,
            "the learned weight_decay of block 'group0' was set to -1.0; it must not be negative, and finite",
        ),
        (
            "momentum",
            1.0,
            "the learned momentum of block 'group0' was set to 1.0; it must not be negative, and below 1",
        ),
        ("lr", math.inf, "the step size of block 'group0' was set to inf; it must not be negative, and finite"),
    ],
)
def test_learned_values_cannot_be_set_to_what_cannot_be_learned(kind: str, value: float, message: str) -> None:
    optimizer = learner(parameter(1.0), base="sgdm", learn=("weight_decay", "momentum"), weight_decay=0.1)
    optimizer.param_groups[0][kind] = value
    with pytest.raises(ValueError, match=exactly(message)):
        step(optimizer, 1.0)


@pytest.mark.parametrize("kind", ["lr", "weight_decay", "momentum"])
@pytest.mark.parametrize("step_sizes", ["group", "node", "weight"])
def test_a_schedule_may_end_at_0(step_sizes: Any, kind: str) -> None:
    """What is learned then is at its lower bound, and may go on from there."""
    lowest = {"lr": 1e-10, "weight_decay": WEIGHT_DECAY_BOUNDS[0], "momentum": MOMENTUM_BOUNDS[0]}[kind]
    learn = ("lr", "weight_decay", "momentum")
    optimizer = learner(parameter(1.0, 2.0), base="sgdm", learn=learn, weight_decay=0.1, step_sizes=step_sizes)
    group = optimizer.param_groups[0]
    step(optimizer, 1.0)
    group[kind] = 0.0
    step(optimizer, 1.0)
    assert lowest <= group[kind] < 2 * lowest
    group[kind] = 1e-3
    step(optimizer, 1.0)
    assert group[kind] == pytest.approx(1e-3, rel=0.2)


# Those who use an optimizer


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"step_sizes": "node"}, 'step_sizes="node" gives a group many step sizes'),
        ({"update_order": "meta_first"}, "update_order='meta_first' is set"),
        ({"parametrisation": "linear"}, "parametrisation='linear' is set"),
        ({"learn": ("lr", "weight_decay")}, "learn=('lr', 'weight_decay') is set"),
        ({"trace": "l"}, 'trace="l" needs the curvature of the loss'),
        ({"step_sizes": "tensor"}, None),  # one group each
        ({"max_meta_change": 2.0}, None),
        ({"meta_every": 2, "meta_weight_decay": 0.1}, None),
        ({"gamma": "auto"}, None),
        ({"trace": "dutch"}, None),
        ({"trace": "dutch", "gamma": "auto"}, None),
    ],
)
def test_fast_engines_say_what_they_lack(options: dict[str, Any], reason: str | None) -> None:
    optimizer = metaoptimize(nn.Linear(2, 2), **{"gamma": 0.999, "trace": "hessian_free"} | options)
    assert why_no_kernels(optimizer) == (None if reason is None else f"there are no kernels where {reason}")


def test_learners_that_learn_no_step_size_are_known_as_such() -> None:
    assert not learns_step_sizes("metaoptimize", {"learn": ["weight_decay"]})
    assert learns_step_sizes("metaoptimize", {"learn": ["weight_decay", "lr"]})


def test_summaries_by_hand() -> None:
    values = torch.tensor([[1.0, 10.0], [100.0, 1000.0], [10.0, 10.0]])
    assert geometric_mean(values) == pytest.approx(10 ** (8 / 6))
    assert geometric_mean(2.5) == geometric_mean(torch.tensor(2.5)) == 2.5
    assert quantiles_of(torch.arange(101.0)) == pytest.approx((5, 25, 75, 95))
    assert quantiles_of(2.5) is None
    assert quantiles_of(torch.arange(3_000_001.0)) == pytest.approx((150000, 750000, 2250000, 2850000), rel=1e-5)
