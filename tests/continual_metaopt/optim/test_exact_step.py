"""MetaOptimize with exact traces: finite differences of its own runs, its relatives as special cases, and mistakes."""

import copy
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from continual_metaopt import MetaOptimizeStrategy
from continual_metaopt.networks.losses import HalfSquaredError
from continual_metaopt.optim.base_updates import BASE_UPDATES
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.dynamic_parameters import follow_parameters
from continual_metaopt.optim.metaoptimize import MetaOptimize, NonFiniteMetaGradient
from continual_metaopt.optim.peers.hypergradient import SGDHD
from continual_metaopt.optim.peers.idbd import IDBD
from continual_metaopt.optim.peers.idbd_network import NetworkIDBD
from continual_metaopt.optim.traces import UPDATE_ORDERS
from continual_metaopt.streams import make_stream

from ..conftest import exactly
from .peers import peer_references
from .peers.test_linear_peers import weight_step_sizes
from .test_traces import NETWORK, STEPS

EXACT = ("l", "2x2", "full")

# One step by hand: one weight w, loss ½ c w², SGD, "l"


def quadratic(w: Tensor, c: float) -> Callable[[], Tensor]:
    return lambda: (0.5 * c * w**2).sum()


def parameter(*values: Any) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def learner(*params: Any, **options: Any) -> MetaOptimize:
    settings = {"base": "sgd", "meta": "sgd", "meta_lr": 0.5, "gamma": 0.9, "weight_decay": 0.0, "trace": "l"}
    return MetaOptimize(list(params), **{"lr": 0.1} | settings | options)


def test_a_written_step_size_and_a_bounded_meta_update_by_hand() -> None:
    w = parameter(1.0)
    optimizer = learner(w, max_meta_change=0.01)
    optimizer.step(quadratic(w, 2.0))  # h = −0.1 · 2,  w = 1 − 0.2
    assert optimizer.state[w]["traces"]["weights"].item() == pytest.approx(-0.2, rel=1e-14)
    optimizer.param_groups[0]["lr"] = 0.3
    optimizer.step(quadratic(w, 5.0))  # g = 4;  z = −0.8;  h = 0.9 (1 − 0.3 · 5) h − 0.3 · 4;  Δβ = 0.4, bounded
    assert w.item() == pytest.approx(0.8 - 1.2, rel=1e-14)
    assert optimizer.state[w]["traces"]["weights"].item() == pytest.approx(0.9 * -0.5 * -0.2 - 1.2, rel=1e-14)
    assert optimizer.meta_gradient_report() == pytest.approx({"group0": -0.8}, rel=1e-14)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3 * math.exp(0.01), rel=1e-14)


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"curvature_clip": (0.0, 1.0)}, 0.0),
        ({"curvature_smoothing": 0.5}, 1 - 0.1 * 20 / 1.5),  # the first product was 0, as the trace was
        ({}, 1 - 0.1 * 20),
    ],
)
def test_curvature_may_be_averaged_and_clipped(options: dict[str, Any], factor: float) -> None:
    w = parameter(1.0)
    optimizer = learner(w, meta_lr=1e-9, **options)
    optimizer.step(quadratic(w, 1.0))  # h = −0.1
    optimizer.step(quadratic(w, 20.0))  # g = 18
    assert optimizer.state[w]["traces"]["weights"].item() == pytest.approx(0.9 * factor * -0.1 - 1.8, rel=1e-7)


def test_gradients_that_others_have_put_in_place_count() -> None:
    w = parameter(1.0)
    optimizer = learner(w, meta_lr=1e-9)

    def clipped() -> Tensor:
        optimizer.zero_grad()
        loss = quadratic(w, 2.0)()
        loss.backward(retain_graph=True)
        nn.utils.clip_grad_value_([w], 0.5)
        return loss

    optimizer.step(clipped)
    assert w.item() == pytest.approx(1 - 0.05, rel=1e-14)
    optimizer.step(clipped)  # h = 0.9 (1 − 0.1 · 2) (−0.05) − 0.05
    assert w.item() == pytest.approx(1 - 0.1, rel=1e-7)
    assert optimizer.state[w]["traces"]["weights"].item() == pytest.approx(-0.036 - 0.05, rel=1e-7)


def test_gradients_of_the_last_step_do_not_count() -> None:
    w = parameter(1.0)
    optimizer = learner(w)
    assert optimizer.step(quadratic(w, 2.0)).item() == 1.0
    assert w.grad is not None
    assert w.grad.item() == 2.0
    optimizer.step(quadratic(w, 2.0))
    assert w.grad.item() == pytest.approx(1.6, rel=1e-14)
    several = parameter(1.0, 2.0)
    other = learner(several)
    other.step(lambda: several.sum())
    other.zero_grad(set_to_none=False)  # which writes to it
    assert several.grad is not None
    assert several.grad.tolist() == [0.0, 0.0]


# Blocks that do not learn, parameters without gradient


@pytest.mark.parametrize("variant", EXACT)
@pytest.mark.parametrize("order", UPDATE_ORDERS)
def test_a_fixed_step_size_has_no_column_but_its_weights_have_traces(variant: Any, order: Any) -> None:
    """The same as one that learns at no noticeable pace, but for that one's column."""

    def traces(meta_lr: float) -> list[Tensor]:
        params = NETWORK.parameters()
        groups = [{"params": params[:1], "meta_lr": meta_lr}, {"params": params[1:], "step_sizes": "weight"}]
        options = {"trace": variant, "update_order": order, "base": "adamw", "meta": "adam", "weight_decay": 0.1}
        optimizer = learner(*groups, **options)
        for t in range(STEPS):
            optimizer.step(lambda t=t: NETWORK.loss(t, NETWORK.output(t, params)))
        return [optimizer.state[p]["traces"]["weights"] for p in params]

    with_column, without = traces(1e-300), traces(0.0)
    for own, other in zip(without, with_column, strict=True):
        torch.testing.assert_close(own, other[1:], rtol=1e-10, atol=1e-14)
        assert own.abs().max() > 1e-4


def test_with_diagonal_curvature_weights_with_a_fixed_step_size_have_no_trace() -> None:
    params = NETWORK.parameters()
    groups = [{"params": params[:1], "meta_lr": 0.0}, {"params": params[1:]}]
    optimizer = learner(*groups, curvature="diagonal")
    for t in range(2):
        optimizer.step(lambda t=t: both(t, params))
    assert "traces" not in optimizer.state[params[0]]
    assert optimizer.state[params[1]]["traces"]["weights"].shape == (1, *params[1].shape)


def both(t: int, params: list[Tensor]) -> tuple[Tensor, Tensor]:
    output = NETWORK.output(t, params)
    return NETWORK.loss(t, output), output


@pytest.mark.parametrize("variant", EXACT)
def test_a_parameter_that_has_no_gradient_waits(variant: Any) -> None:
    used, unused, frozen = parameter(1.0, 2.0), parameter(3.0), parameter(1.0).requires_grad_(False)
    optimizer = learner(used, unused, frozen, trace=variant, step_sizes="tensor")
    alone = parameter(1.0, 2.0)
    other = learner(alone, trace=variant, step_sizes="tensor")
    for _ in range(3):
        optimizer.step(lambda: (used**4).sum())
        other.step(lambda: (alone**4).sum())
    assert used.equal(alone)
    assert unused.item() == 3.0
    assert optimizer.step_size_report()["group0"].tolist() == [other.step_size_report()["group0"].item(), 0.1, 0.1]
    optimizer.step(lambda: (unused**2).sum())
    assert used.equal(alone)
    assert unused.item() == pytest.approx(3.0 - 0.6, rel=1e-14)


@pytest.mark.parametrize("base", sorted(BASE_UPDATES))
def test_without_meta_step_it_is_the_base_update(base: str) -> None:
    weights = []
    for trace in ("hessian_free", "2x2"):
        p = nn.Parameter(torch.arange(1.0, 5.0))
        optimizer = MetaOptimize([p], 0.01, base=base, meta_lr=0.0, trace=trace)  # type: ignore[arg-type]
        for _ in range(5):
            optimizer.zero_grad()
            loss = (p**3).sum()
            if trace == "hessian_free":
                loss.backward()
            optimizer.step(lambda loss=loss: loss)
        weights.append(p.detach())
    assert weights[0].equal(weights[1])


# Resuming, growing

NETWORKS = [
    {"trace": "l", "step_sizes": "node", "curvature_smoothing": 0.5},
    {"trace": "l", "step_sizes": "weight", "curvature": "diagonal", "curvature_clip": (0.0, 1.0), "meta_every": 3},
    {"trace": "2x2", "step_sizes": "scalar", "curvature": "gauss_newton", "meta": "lion"},
    {"trace": "2x2", "step_sizes": "weight", "meta_every": 3, "update_order": "meta_first"},
    {"trace": "full", "step_sizes": "group"},
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def train(model: nn.Module, optimizer: MetaOptimize, steps: range, n_outputs: int = 2) -> None:
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        output = model(torch.randn(3, 3, generator=generator))
        loss = nn.functional.cross_entropy(output[:, :n_outputs], torch.randint(2, (3,), generator=generator))
        optimizer.step(lambda loss=loss, output=output: (loss, output))


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_a_saved_state_goes_on_bit_for_bit(options: dict[str, Any]) -> None:
    def make() -> tuple[nn.Sequential, MetaOptimize]:
        model = network()
        return model, MetaOptimize(blocks(model, "layerwise"), 0.01, meta_lr=0.1, **options)

    model, optimizer = make()
    train(model, optimizer, range(4))
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    twin, twins = make()
    twin.load_state_dict(weights)
    twins.load_state_dict(state)
    copied, copies = copy.deepcopy((model, optimizer))
    for m, o in ((model, optimizer), (twin, twins), (copied, copies)):
        train(m, o, range(4, 9))
        assert all(p.equal(q) for p, q in zip(m.parameters(), model.parameters(), strict=True))
        assert str(o.step_size_report()) == str(optimizer.step_size_report())
    assert str(optimizer.step_size_report()) != str(make()[1].step_size_report())


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_what_is_added_changes_nothing_for_the_others(options: dict[str, Any]) -> None:
    """New outputs that the loss does not depend on, and a new group, leave weights and columns of the others alone."""

    def make() -> tuple[nn.Sequential, MetaOptimize]:
        model = network()
        options_of_all = {"meta_lr": 0.1, "weight_decay": 0.0, "base": "sgdm"} | options
        return model, MetaOptimize(blocks(model, "layerwise"), 0.1, **options_of_all)

    plain, other = make()
    train(plain, other, range(7))
    model, optimizer = make()
    train(model, optimizer, range(3))
    old = dict(model.named_parameters())
    head = nn.Linear(4, 5)
    with torch.no_grad():
        head.weight[:2], head.bias[:2] = model[2].weight, model[2].bias
    model[2] = head
    follow_parameters(optimizer, old, dict(model.named_parameters()))
    shared = {"step_sizes": "scalar"} if options["step_sizes"] == "scalar" else {}
    new = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [new], "name": "new", **shared})
    train(model, optimizer, range(3, 7))

    torch.testing.assert_close(model[0].weight, plain[0].weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.weight[:2], plain[2].weight, rtol=1e-5, atol=1e-6)
    first, before = (o.state[m[0].weight]["traces"]["weights"] for m, o in ((model, optimizer), (plain, other)))
    torch.testing.assert_close(first[: len(before)][:5], before[:5], rtol=1e-4, atol=1e-6)
    assert before.abs().max() > 1e-3
    traces = optimizer.state[head.weight]["traces"]["weights"]
    assert traces.shape[1:] == (5, 4)
    assert not traces[:, 2:].any()
    assert len(traces) == len(first)
    train(model, optimizer, range(7, 12), n_outputs=5)
    assert all(p.isfinite().all() for p in model.parameters())


def test_columns_follow_their_step_sizes() -> None:
    a, b, c = parameter(1.0, 2.0), parameter(3.0), parameter(4.0)
    optimizer = learner({"params": [a], "step_sizes": "weight"}, {"params": [b]})
    loss = lambda *params: sum(p.sum() for p in params) ** 2  # noqa: E731
    optimizer.step(lambda: loss(a, b))
    before = optimizer.state[b]["traces"]["weights"].clone()
    assert before.tolist() == [[0.0], [0.0], [-0.1 * 12]]
    larger = parameter(1.0, 2.0, 0.0)
    follow_parameters(optimizer, {"a": a, "b": b}, {"a": larger, "b": b})
    optimizer.add_param_group({"params": [c]})
    step = -0.1 * 12
    assert optimizer.state[larger]["traces"]["weights"].tolist() == [[step, 0.0, 0.0], [0.0, step, 0.0], [0.0] * 3]
    optimizer.step(lambda: 0.0 * loss(larger, b, c))
    assert optimizer.state[larger]["traces"]["weights"][:, 0].tolist() == [0.9 * step, 0.0, 0.0, 0.0, 0.0]
    assert optimizer.state[larger]["traces"]["weights"][:, 1].tolist() == [0.0, 0.9 * step, 0.0, 0.0, 0.0]
    assert optimizer.state[b]["traces"]["weights"][:, 0].tolist() == [0.0, 0.0, 0.0, 0.9 * step, 0.0]
    assert not optimizer.state[c]["traces"]["weights"].any()
    optimizer.step(lambda: c.sum())
    assert optimizer.state[c]["traces"]["weights"][:, 0].tolist() == [0.0, 0.0, 0.0, 0.0, -0.1]


# Special cases


def test_idbd_is_a_special_case() -> None:
    torch.manual_seed(3)
    model = nn.Linear(4, 2).double()
    twin = copy.deepcopy(model)
    idbd = IDBD(model, 0.2, meta_lr=0.05)
    optimizer = MetaOptimize(
        twin.parameters(),
        0.2,
        base="sgd",
        meta="sgd",
        meta_lr=0.05,
        step_sizes="weight",
        update_order="meta_first",
        gamma=1.0,
        trace="l",
        curvature="diagonal",
        curvature_clip=(0.0, 1.0),
        weight_decay=0.0,
    )
    criterion, clipped = HalfSquaredError(), 0
    for _ in range(40):
        x, y = torch.randn(1, 4).double() * 1.5, torch.randn(1, 2).double()
        idbd.zero_grad()
        criterion(model(x), y).backward()
        idbd.step()
        output = twin(x)
        optimizer.step(lambda output=output, y=y: (criterion(output, y), output))
        clipped += int((weight_step_sizes(idbd, model.weight) * x**2 > 1).sum())
    torch.testing.assert_close(list(twin.parameters()), list(model.parameters()), rtol=1e-9, atol=1e-12)
    sizes = torch.cat([weight_step_sizes(idbd, p).flatten() for p in model.parameters()])
    torch.testing.assert_close(optimizer.step_size_report()["group0"], sizes, rtol=1e-9, atol=0.0)
    assert sizes.std() > 1e-3
    assert clipped > 0


def test_idbd_for_networks_is_a_special_case_for_the_logarithm_of_a_probability() -> None:
    """It takes g² for the diagonal; for f = −log p, where f'' = f'², that is the Gauss–Newton matrix's."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Sigmoid()).double()
    twin = copy.deepcopy(model)
    idbd = NetworkIDBD(model.parameters(), 0.5, meta_lr=0.05)
    optimizer = MetaOptimize(
        twin.parameters(),
        0.5,
        base="sgd",
        meta="sgd",
        meta_lr=0.05,
        step_sizes="weight",
        update_order="meta_first",
        gamma=1.0,
        trace="l",
        curvature="diagonal",
        curvature_clip=(0.0, 1.0),
        weight_decay=0.0,
    )
    for t in range(30):
        x = torch.randn(1, 3).double() * 2
        sign = (-1) ** t

        def probability(network: nn.Module, x: Tensor = x, sign: int = sign) -> Tensor:
            p: Tensor = network(x)
            return p if sign > 0 else 1 - p

        idbd.zero_grad()
        (-probability(model).log().sum()).backward()
        idbd.step()
        p = probability(twin)
        optimizer.step(lambda p=p: (-p.log().sum(), p))
    torch.testing.assert_close(list(twin.parameters()), list(model.parameters()), rtol=1e-8, atol=1e-11)
    sizes = torch.cat([weight_step_sizes(idbd, w).flatten() for w in model.parameters()])
    torch.testing.assert_close(optimizer.step_size_report()["group0"], sizes, rtol=1e-8, atol=0.0)
    assert sizes.std() > 1e-3


def test_hypergradient_descent_is_a_special_case_of_additive_step_sizes() -> None:
    torch.manual_seed(3)
    model = network().double()
    twin = copy.deepcopy(model)
    sgd_hd = SGDHD(model.parameters(), 0.05, meta_lr=1e-3)
    optimizer = MetaOptimize(
        twin.parameters(),
        0.05,
        base="sgd",
        meta="sgd",
        meta_lr=1e-3,
        step_sizes="scalar",
        gamma=0.0,
        weight_decay=0.0,
        parametrisation="linear",
        update_order="meta_first",
    )
    for _ in range(30):
        x, y = torch.randn(2, 3).double(), torch.randint(2, (2,))
        for m, o in ((model, sgd_hd), (twin, optimizer)):
            o.zero_grad()
            nn.functional.cross_entropy(m(x), y).backward()
            o.step()
    torch.testing.assert_close(list(twin.parameters()), list(model.parameters()), rtol=1e-11, atol=0.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(sgd_hd.param_groups[0]["lr"], rel=1e-12)
    assert abs(optimizer.param_groups[0]["lr"] - 0.05) > 1e-4


@pytest.mark.parametrize("trace", ["hessian_free", *EXACT])
@pytest.mark.parametrize("order", UPDATE_ORDERS)
def test_hypergradient_descent_of_the_logarithm_is_a_special_case(order: Any, trace: Any) -> None:
    """With γ = 0, traces forget all but the last step, which needs no curvature."""
    w = nn.Parameter(torch.as_tensor(NETWORK.initial))
    sizes = [int(np.prod(shape)) for shape in NETWORK.shapes]
    optimizer = learner(w, lr=0.1, meta_lr=0.1, gamma=0.0, update_order=order, trace=trace, step_sizes="scalar")
    expected = peer_references.hypergradient_descent(
        NETWORK.gradient, NETWORK.initial, STEPS, 0.1, 0.1, log=True, base_first=order == "base_first"
    )
    for t, known in enumerate(expected):
        optimizer.zero_grad()
        params = [x.reshape(s) for x, s in zip(w.split(sizes), NETWORK.shapes, strict=True)]
        loss = NETWORK.loss(t, NETWORK.output(t, params))
        if trace == "hessian_free":
            loss.backward()
        optimizer.step(lambda loss=loss: loss)
        np.testing.assert_allclose(w.detach(), known["w"], rtol=1e-10)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(known["alpha"], rel=1e-10)


# OnlineLearner

VARIANTS_OF_LEARNERS = [
    {"trace": "l"},
    {"trace": "2x2", "step_sizes": "layerwise", "curvature": "gauss_newton"},
    {"trace": "full", "step_sizes": "scalar", "update_order": "meta_first"},
    {"trace": "2x2", "step_sizes": "weight", "curvature": "diagonal", "curvature_smoothing": 0.9},
]


@pytest.mark.parametrize("options", VARIANTS_OF_LEARNERS, ids=str)
def test_the_online_learner_passes_the_graph(options: dict[str, Any]) -> None:
    from avalanche.training.plugins import SupervisedPlugin

    class Listener(SupervisedPlugin):  # type: ignore[type-arg]
        def __init__(self) -> None:
            super().__init__()
            self.gradients: list[bool] = []

        def after_backward(self, strategy: Any, **kwargs: Any) -> None:
            self.gradients.append(all(p.grad is not None for p in strategy.model.parameters()))

    benchmark = make_stream("permuted_inputs", n_experiences=2, samples_per_experience=15)

    def learned(plugins: list[Any]) -> MetaOptimizeStrategy:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))
        strategy = MetaOptimizeStrategy(model=model, lr=1e-2, meta_lr=0.05, gamma=0.999, plugins=plugins, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            strategy.train(benchmark.train_stream)
        return strategy

    listener = Listener()
    quick, slow = learned([]), learned([listener])
    reason = "neither compiled nor fused: the optimizer differentiates the loss itself"
    assert quick.engine == {"name": "torch", "reason": reason}
    assert listener.gradients == [True] * 30
    for a, b in zip(quick.model.parameters(), slow.model.parameters(), strict=True):
        assert a.equal(b)
    report = quick.optimizer.step_size_report()
    assert str(report) == str(slow.optimizer.step_size_report())
    assert quick.n_samples == 30
    assert not all(torch.as_tensor(x).eq(1e-2).all() for x in report.values())


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_gradients_that_a_plugin_has_changed_count(scale: float) -> None:
    from avalanche.training.plugins import SupervisedPlugin

    class Scaling(SupervisedPlugin):  # type: ignore[type-arg]
        def after_backward(self, strategy: Any, **kwargs: Any) -> None:
            for p in strategy.model.parameters():
                p.grad *= scale

    benchmark = make_stream("permuted_inputs", n_experiences=1, samples_per_experience=1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = model[1].bias.detach().clone()
    options: dict[str, Any] = {"base": "sgd", "weight_decay": 0.0, "trace": "l", "gamma": 1.0, "lr": 0.5}
    MetaOptimizeStrategy(model=model, plugins=[Scaling()], **options).train(benchmark.train_stream)
    moved = before - model[1].bias.detach()  # 0.5 · scale · (probabilities − label)
    assert moved.sum().item() == pytest.approx(0.0, abs=1e-6)
    assert moved.clamp(min=0).sum().item() == pytest.approx(0.45 * scale, rel=0.1)


# Mistakes


def message_of(call: Callable[[], Any], kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as raised:
        call()
    return str(raised.value)


def test_what_is_missing_is_named() -> None:
    w = parameter(1.0)
    optimizer = learner(w)
    start = 'trace="l" needs the curvature of the loss: in place of loss.backward() and optimizer.step(), call '
    assert message_of(optimizer.step) == start + "optimizer.step(lambda: loss)"
    diagonal = learner(w, curvature="diagonal")
    assert message_of(diagonal.step) == start + "optimizer.step(lambda: (loss, output))"
    for kind in ("diagonal", "gauss_newton"):
        own = learner(w, curvature=kind)
        assert message_of(lambda own=own: own.step(quadratic(w, 1.0))) == (
            f'curvature="{kind}" needs the network\'s output: let the closure return (loss, output)'
        )
    no_graph = (
        'trace="l" needs the loss with its graph, but the closure returned {}; return what the criterion made of the '
        "network's output, neither detached nor as a number"
    )
    for value, what in ((1.5, "a float"), (None, "a NoneType"), (torch.ones(()), "a tensor without one")):
        assert message_of(lambda value=value: optimizer.step(lambda: value)) == no_graph.format(what)

    def conventional() -> Tensor:
        optimizer.zero_grad()
        loss = quadratic(w, 1.0)()
        loss.backward()
        return loss

    assert message_of(lambda: optimizer.step(conventional)) == (
        'the graph that trace="l" differentiates is gone, as after loss.backward(): leave it to the optimizer to '
        "compute gradients, or call loss.backward(retain_graph=True)"
    )
    complex_weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    other = learner(complex_weight)
    assert message_of(lambda: other.step(lambda: complex_weight.abs().sum())) == (
        "MetaOptimize does not work with complex parameters"
    )
    assert w.item() == 1.0
    assert not optimizer.state
    assert not other.state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trace": "L"}, "unknown trace 'L'. Did you mean 'l'? Known: 2x2, dutch, full, hessian_free, l"),
        (
            {"trace": "dutch", "curvature": "diagonal"},
            'curvature=\'diagonal\' has no effect with trace="dutch"; use trace="l"',
        ),
        (
            {"curvature": "diag"},
            "unknown curvature 'diag'. Did you mean 'diagonal'? Known: diagonal, exact, gauss_newton",
        ),
        (
            {"parametrisation": "linear"},
            "trace=\"l\" goes with parametrisation='log', not with 'linear'; use trace=\"hessian_free\" for that",
        ),
        (
            {"learn": ("lr", "weight_decay"), "weight_decay": 0.1},
            "trace=\"l\" goes with learn=('lr',), not with ('lr', 'weight_decay'); use trace=\"hessian_free\" for that",
        ),
        (
            {"trace": "hessian_free", "curvature": "diagonal"},
            'curvature=\'diagonal\' has no effect with trace="hessian_free"; use trace="l"',
        ),
        (
            {"trace": "hessian_free", "curvature_clip": (0.0, 1.0)},
            'curvature_clip=(0.0, 1.0) has no effect with trace="hessian_free"; use trace="l"',
        ),
        (
            {"trace_memory_limit": 7},
            'trace="l" with 1 step sizes for 1 weights keeps 1 numbers per weight and 1 per step size, together '
            '0.0 GB, over the limit of 0.0 GB: use coarser step sizes, curvature="diagonal", or raise the limit',
        ),
    ],
)
def test_wrong_options_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        learner(parameter(1.0), **options)


def test_groups_agree_where_columns_need_it() -> None:
    groups = [{"params": [parameter(1.0)]}, {"params": [parameter(1.0)], "update_order": "meta_first"}]
    assert message_of(lambda: learner(*groups)) == (
        "trace=\"l\" goes with update_order='base_first', not with 'meta_first'; all groups have the same one"
    )
    groups = [{"params": [parameter(1.0)]}, {"params": [parameter(1.0)], "gamma": 0.5}]
    assert message_of(lambda: learner(*groups, step_sizes="scalar")) == (
        'step_sizes="scalar" means one step size for all groups, but their gamma differ: 0.9 and 0.5; '
        'give them the same gamma, or use step_sizes="group"'
    )


def test_traces_that_do_not_fit_are_refused_before_they_are_made() -> None:
    params = [nn.Parameter(torch.empty(1000, 25, device="meta"))]
    assert message_of(lambda: MetaOptimize(params, step_sizes="weight", trace="l")) == (
        'trace="l" with 25,000 step sizes for 25,000 weights keeps 75,000 numbers per weight and 25,000 per step '
        'size, together 12.5 GB, over the limit of 2.0 GB: use coarser step sizes, curvature="diagonal", or raise the '
        "limit"
    )
    optimizer = MetaOptimize(params, step_sizes="weight", trace="l", curvature="diagonal")
    assert not optimizer.state
    assert MetaOptimize(params, trace="l").wants_graph
    growing = learner(parameter(1.0), trace_memory_limit=40)
    with pytest.raises(ValueError, match="with 2 step sizes for 2 weights"):
        growing.add_param_group({"params": [parameter(1.0)]})
    assert len(growing.param_groups) == 1


def test_a_state_of_other_traces_is_refused() -> None:
    state = learner(parameter(1.0)).state_dict()
    with pytest.raises(ValueError, match="create it with the same base and meta"):
        learner(parameter(1.0), trace="2x2").load_state_dict(state)


@pytest.mark.parametrize("variant", EXACT)
def test_a_meta_gradient_that_is_not_finite_changes_nothing(variant: Any) -> None:
    w = parameter(1.0)
    optimizer = learner(w, trace=variant)
    optimizer.step(quadratic(w, 2.0))
    before = copy.deepcopy((w.detach(), optimizer.state_dict()))
    assert message_of(lambda: optimizer.step(quadratic(w, math.inf)), NonFiniteMetaGradient) == (
        "the meta gradient of block 'group0' is -inf"
    )
    assert w.equal(before[0])
    assert str(optimizer.state_dict()) == str(before[1])
