"""Glocal hypergradients: by hand, against NumPy step by step, against finite differences."""

import copy
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from continual_metaopt.contract import run_contract
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.dynamic_parameters import follow_parameters
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.optim.peers.glocal import Glocal, glocal
from continual_metaopt.optim.registry import make_optimizer
from tests.continual_metaopt.conftest import exactly
from tests.continual_metaopt.optim.peers.test_koopman import Array
from tests.continual_metaopt.optim.peers.test_network_peers import START, descend, gradient, parameters, weights

SMALL = {"tau": 12, "window": 2, "delays": 2}


def learner(*values: float, **options: Any) -> tuple[nn.Parameter, Glocal]:
    """SGD with α = 0.1, SGD with η = 0.5 as meta update, greedy hypergradients, no weight decay, unless asked for."""
    settings = {"base": "sgd", "meta": "sgd", "meta_lr": 0.5, "weight_decay": 0.0, "tau": 12, "window": 1, "delays": 5}
    p = nn.Parameter(torch.tensor(values or (0.0,), dtype=torch.float64))
    return p, Glocal([p], 0.1, **{"gamma": 0.0} | settings | options)  # type: ignore[arg-type]


def step(p: nn.Parameter, optimizer: Glocal, value: float) -> None:
    p.grad = torch.full_like(p, value)
    optimizer.step()


# By hand


def test_a_constant_hypergradient_is_its_own_limit() -> None:
    p, optimizer = learner()
    for _ in range(11):
        step(p, optimizer, 2.0)
    assert optimizer.step_size_report() == {"group0": 0.1}
    step(p, optimizer, 2.0)  # z was 0 and then −0.1 · 2 · 2
    assert optimizer.meta_gradient_report() == {"group0": pytest.approx(-0.4)}
    assert optimizer.meta_parameter_report() == {
        "group0": {"global_hypergradient": pytest.approx(-0.4)},
        "all": {"n_collections": 1.0, "n_skipped": 0.0},
    }
    assert optimizer.step_size_report() == {"group0": pytest.approx(0.1 * np.exp(0.5 * 0.4))}
    assert p.item() == pytest.approx(-2.4)


def test_a_fading_hypergradient_has_no_limit_and_the_step_size_stays() -> None:
    p, optimizer = learner(tolerance=0.5)
    for t in range(24):
        step(p, optimizer, 0.5**t)  # z falls by 4 each time
    assert optimizer.step_size_report() == {"group0": 0.1}
    assert optimizer.meta_parameter_report() == {"all": {"n_collections": 2.0, "n_skipped": 2.0}}
    assert optimizer.meta_gradient_report() == {"group0": pytest.approx(-0.1 * 0.5**45)}


def test_collections_of_their_own_begin_with_traces_of_zero() -> None:
    p, optimizer = learner(gamma=1.0, tolerance=10.0)
    for t in range(12):
        assert optimizer.state[p].get("trace", torch.zeros(1)).item() == pytest.approx(-0.1 * t)
        step(p, optimizer, 1.0)  # z is −0.1 t
    assert optimizer.state[p]["trace"].item() == 0
    assert optimizer.meta_parameter_report()["group0"]["global_hypergradient"] == pytest.approx(-1.1, rel=1e-3)


def test_greedy_hypergradients_go_on_across_collections() -> None:
    p, optimizer = learner(meta_lr=1e-9)
    for _ in range(12):
        step(p, optimizer, 1.0)
    assert optimizer.state[p]["trace"].item() == pytest.approx(-0.1)


def test_without_meta_step_it_is_the_base_update() -> None:
    params, others = parameters(split=True), parameters(split=True)
    optimizer = Glocal(params, 0.1, meta_lr=0.0, **SMALL)  # type: ignore[arg-type]
    plain = torch.optim.AdamW(others, 0.1)
    for t in range(30):
        descend(params, optimizer, t)
        descend(others, plain, t)
    assert (weights(params) == weights(others)).all()
    assert optimizer.meta_parameter_report() == {"all": {"n_collections": 0.0, "n_skipped": 0.0}}


# Against NumPy


def reference(gamma: float, n_steps: int, tolerance: float, meta_lr: float) -> Iterator[dict[str, Any]]:
    """RMSProp with Adam as meta update; two blocks, of which step sizes and weight decays are learned."""
    w, v, block = START.copy(), np.zeros(4), np.array([0, 1, 1, 1])
    values = np.log(np.array([0.1, 0.1, 0.05, 0.05]))  # step sizes of the blocks, then weight decays
    h, h_decay = np.zeros(4), np.zeros(4)
    mean, square, n_updates, snapshots, window = np.zeros(4), np.zeros(4), 0, [], []
    skipped = 0
    for t in range(n_steps):
        g = gradient(w, t)
        z = np.array([(trace * g)[block == b].sum() for trace in (h, h_decay) for b in (0, 1)])
        v = 0.999 * v + 0.001 * g**2
        alpha, kappa = np.exp(values[:2])[block], np.exp(values[2:])[block]
        move = alpha * g / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8) + alpha * kappa * w
        h, h_decay = (gamma * (1 - alpha * kappa) * trace for trace in (h, h_decay))
        h, h_decay = h - move, h_decay - alpha * kappa * w
        w = w - move
        window.append(z)
        if len(window) == SMALL["window"]:
            snapshots.append(np.mean(window, axis=0))
            window = []
        estimate = np.full(4, np.nan)
        if len(snapshots) == SMALL["tau"] // SMALL["window"]:
            found = reference_limit(np.array(snapshots), SMALL["delays"], tolerance)
            snapshots = []
            if gamma > 0:
                h, h_decay = np.zeros(4), np.zeros(4)
            if found is None:
                skipped += 1
            else:
                estimate, n_updates = found, n_updates + 1
                mean, square = 0.9 * mean + 0.1 * estimate, 0.999 * square + 0.001 * estimate**2
                root = np.sqrt(square / (1 - 0.999**n_updates)) + 1e-8
                values = values - meta_lr * mean / (1 - 0.9**n_updates) / root
        yield {"w": w, "z": z, "values": np.exp(values), "estimate": estimate, "skipped": skipped}


def reference_limit(snapshots: Array, delays: int, tolerance: float) -> Array | None:
    """The limit by pseudo-inverses: of the whole map on the leading subspace, and of all terms' courses."""
    scale = np.sqrt((snapshots**2).mean(axis=0))
    columns = np.array([(snapshots / scale)[t : t + delays].ravel() for t in range(len(snapshots) - delays + 1)]).T
    left, sizes, right = np.linalg.svd(columns[:, :-1], full_matrices=False)
    b = min(columns[:, :-1].shape) / max(columns[:, :-1].shape)
    rank = max(1, int((sizes > np.median(sizes) * (0.56 * b**3 - 0.95 * b**2 + 1.82 * b + 1.43)).sum()))
    pinv = right[:rank].T @ np.diag(1 / sizes[:rank]) @ left[:, :rank].T
    eigenvalues, vectors = np.linalg.eig(left[:, :rank] @ left[:, :rank].T @ columns[:, 1:] @ pinv)
    chosen = np.argsort(-np.abs(eigenvalues))[:rank]
    eigenvalues, vectors = eigenvalues[chosen].astype(complex), vectors[: snapshots.shape[1], chosen].astype(complex)
    n = len(snapshots)
    design = np.array([(eigenvalues**t * vectors[i]) for t in range(n) for i in range(snapshots.shape[1])])
    amplitudes = np.linalg.pinv(design) @ (snapshots / scale).ravel()
    lasts = np.abs(np.abs(eigenvalues) - 1) <= tolerance
    if not lasts.any():
        return None
    at_last = (vectors * amplitudes * eigenvalues ** (n - 1))[:, lasts].sum(axis=1).real
    return np.asarray(at_last * scale)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("tolerance", [0.05, 0.3])
def test_every_step_is_the_reference_s(gamma: float, tolerance: float) -> None:
    params = parameters(split=True)
    groups = [{"params": [p], "name": name} for p, name in zip(params, "ab", strict=True)]
    optimizer = Glocal(
        groups,
        0.1,
        base="rmsprop",
        meta_lr=0.2,
        gamma=gamma,
        tolerance=tolerance,
        weight_decay=0.05,
        learn=("lr", "weight_decay"),
        **SMALL,  # type: ignore[arg-type]
    )
    n_estimates = 0
    for t, expected in enumerate(reference(gamma, 60, tolerance, 0.2)):
        descend(params, optimizer, t)
        np.testing.assert_allclose(weights(params), expected["w"], rtol=1e-7)
        np.testing.assert_allclose(list(optimizer.meta_gradient_report().values()), expected["z"][:2], rtol=1e-6)
        report = optimizer.meta_parameter_report()
        found = [*optimizer.step_size_report().values(), *(report[name]["weight_decay"] for name in "ab")]
        np.testing.assert_allclose(np.array(found, dtype=float), expected["values"], rtol=1e-7)
        assert report["all"]["n_skipped"] == expected["skipped"]
        if np.isfinite(expected["estimate"]).all():
            n_estimates += 1
            estimates = [report[name][f"global_hypergradient{of}"] for of in ("", "_of_weight_decay") for name in "ab"]
            np.testing.assert_allclose(np.array(estimates, dtype=float), expected["estimate"], rtol=1e-6)
    assert report["all"]["n_collections"] == 5
    assert n_estimates + report["all"]["n_skipped"] == 5
    assert n_estimates > 0


# Against finite differences


def bumped_losses(start: list[torch.Tensor], first: int, last: int, block: int, by: float) -> float:
    """Loss at the last sample where a block's log step size was larger since the first one."""
    params = [p.clone().requires_grad_() for p in start]
    for t in range(first, last + 1):
        loss = curved_loss(params, t)
        if t == last:
            break
        gradients = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(params, gradients, strict=True)):
                p.sub_(0.05 * np.exp(by * (i == block)) * g)
    return loss.item()


def curved_loss(params: list[Any], t: int) -> torch.Tensor:
    a, b = params
    x = torch.cos(torch.arange(3.0, dtype=torch.float64) * (t + 1))
    return (torch.tanh(a @ x) * b - torch.sin(torch.tensor(0.5 * t))).square().sum()


def test_exact_hypergradients_are_derivatives_since_the_collection_began() -> None:
    a = nn.Parameter(torch.tensor([[0.3, -0.5, 0.8], [1.0, 0.2, -0.4]], dtype=torch.float64))
    b = nn.Parameter(torch.tensor([0.7, -1.1], dtype=torch.float64))
    groups = [{"params": [p], "name": name} for p, name in ((a, "a"), (b, "b"))]
    optimizer = Glocal(
        groups, 0.05, base="sgd", gamma=1.0, trace="l", weight_decay=0.0, tau=6, window=1, delays=2, tolerance=0.0
    )
    for t in range(12):
        if t % 6 == 0:
            start = [p.detach().clone() for p in (a, b)]
        optimizer.step(lambda t=t: curved_loss([a, b], t))
        first, eps = t - t % 6, 1e-5
        for block, name in enumerate("ab"):
            up, down = (bumped_losses(start, first, t, block, sign * eps) for sign in (1, -1))
            expected = (up - down) / (2 * eps)
            assert optimizer.meta_gradient_report()[name] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert optimizer.meta_parameter_report()["all"] == {"n_collections": 2.0, "n_skipped": 2.0}


# As an optimizer

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"gamma": 0.0},
    "accumulated": {"gamma": 1.0},
    "exact": {"gamma": 1.0, "trace": "l"},
    "everything": {"gamma": 1.0, "learn": ("lr", "weight_decay", "momentum"), "keep": "one"},
    "shared": {"step_sizes": "scalar"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_is_fulfilled(kind: str) -> None:
    def make(model: nn.Module) -> Glocal:
        return Glocal(blocks(model), 1e-3, tau=4, window=1, delays=2, tolerance=0.5, **KINDS[kind])

    assert not any(run_contract(make).values())


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    for t in steps:
        random = torch.Generator().manual_seed(t)
        x = torch.randn(2, 4, generator=random, dtype=torch.float64)
        y = torch.randint(2, (2,), generator=random)
        loss = nn.functional.cross_entropy(model(x), y)
        if optimizer.wants_graph:
            optimizer.step(lambda loss=loss: loss)
        else:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def network(outputs: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, outputs)).double()


def of_network(model: nn.Module, **options: Any) -> Glocal:
    return Glocal(blocks(model), **{"lr": 0.01, "tolerance": 0.5, "meta_lr": 0.5, **SMALL, **options})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [5, 12, 19])
def test_a_state_dict_resumes_in_the_middle_of_a_collection(kind: str, steps: int) -> None:
    model = network()
    optimizer = of_network(model, **KINDS[kind])
    train(model, optimizer, range(steps))
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    state, learned = torch.load(file, weights_only=True)
    other = network()
    other.load_state_dict(state)
    successor = of_network(other, **KINDS[kind])
    successor.load_state_dict(learned)
    for m, o in ((model, optimizer), (other, successor)):
        train(m, o, range(steps, 30))
    assert all(p.equal(q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert successor.meta_parameter_report() == optimizer.meta_parameter_report()
    assert successor.step_size_report() == optimizer.step_size_report() != dict.fromkeys(["0", "2"], 0.01)


def test_a_state_of_other_collections_is_refused() -> None:
    optimizer = of_network(network())
    with pytest.raises(ValueError, match=r"^this state was saved by .*Collecting\(tau=12, .* create it with the same"):
        of_network(network(), tau=24).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="create it with the same base and meta"):
        MetaOptimize(blocks(network())).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_collection_goes_on_when_a_head_grows(kind: str) -> None:
    model = network()
    optimizer = of_network(model, **KINDS[kind])
    train(model, optimizer, range(7))
    snapshots = copy.deepcopy(optimizer.param_groups[0]["collection"]["snapshots"])
    old, head = dict(model.named_parameters()), network(outputs=4)[2]
    model[2] = head
    follow_parameters(optimizer, old, dict(model.named_parameters()))
    train(model, optimizer, range(7, 11))
    assert optimizer.param_groups[0]["collection"]["snapshots"][:3] == snapshots
    assert len(optimizer.param_groups[0]["collection"]["snapshots"]) == 5
    train(model, optimizer, range(11, 30))
    assert optimizer.meta_parameter_report()["all"]["n_collections"] == 2


def test_a_collection_begins_anew_with_a_new_block() -> None:
    model = network()
    optimizer = of_network(model)
    train(model, optimizer, range(7))
    more = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [more], "name": "more", "lr": 0.2})
    train(model, optimizer, range(7, 9))
    assert optimizer.param_groups[0]["collection"]["snapshots"][0][-1] == 0
    train(model, optimizer, range(9, 19))
    assert optimizer.meta_parameter_report()["all"]["n_collections"] == 1
    assert optimizer.step_size_report()["more"] == 0.2


def test_step_sizes_may_be_written_and_are_bounded() -> None:
    p, optimizer = learner(lr_bounds=(1e-10, 0.35))
    optimizer.param_groups[0]["lr"] = 0.3
    for _ in range(12):
        step(p, optimizer, 2.0)
    assert optimizer.step_size_report() == {"group0": 0.35}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0}, "tau must be a whole number, at least 1, but is 0"),
        ({"window": 2.0}, "window must be a whole number, at least 1, but is 2.0"),
        ({"delays": -1}, "delays must be a whole number, at least 1, but is -1"),
        ({"tolerance": -0.1}, "tolerance must be finite and not negative, but is -0.1"),
        ({"tau": 100, "window": 30}, "tau = 100 must be a multiple of window = 30"),
        (
            {"tau": 100, "window": 10, "delays": 9},
            "tau = 100 with window = 10 makes 10 snapshots, but 9 delays need at least 11; "
            "increase tau or decrease window or delays",
        ),
        ({"keep": "all"}, "unknown distance of eigenvalues to keep 'all'. Known: modulus, one"),
        ({"trace": "full"}, "unknown trace of local hypergradients 'full'. Known: hessian_free, l"),
        ({"gamma": "auto"}, "gamma must be a number for glocal hypergradients, but is 'auto'"),
        (
            {"step_sizes": "node"},
            "step_sizes='node' does not go with glocal hypergradients; use 'group' or 'scalar'",
        ),
        (
            {"trace": "l", "learn": ("lr", "weight_decay"), "weight_decay": 0.1},
            "trace=\"l\" goes with learn=('lr',), not with ('lr', 'weight_decay'); use trace=\"hessian_free\" for that",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        learner(**options)


def test_the_learner_has_a_step_size_for_each_block_and_its_own_settings() -> None:
    optimizer = make_optimizer("glocal", network(), lr=0.02, tau=60, window=5, delays=3, tolerance=0.2, meta_lr=0.7)
    assert isinstance(optimizer, Glocal)
    assert optimizer.step_size_report() == {"0": 0.02, "2": 0.02}
    assert (optimizer.collecting.tau, optimizer.collecting.window, optimizer.collecting.delays) == (60, 5, 3)
    assert {group["meta_lr"] for group in optimizer.param_groups} == {0.7}
    message = "step_sizes='weight' does not go with glocal hypergradients; use 'group' or 'scalar'"
    with pytest.raises(ValueError, match=exactly(message)):
        glocal(network(), step_sizes="weight")
