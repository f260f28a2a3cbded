"""Contract tests: what this package relies on in an optimizer, to be run on anybody's.

python -m continual_metaopt.contract my_package:MyOptimizer
python -m continual_metaopt.contract torch:AdamW --option lr=1e-2
python -m continual_metaopt.contract idbd --linear
"""

import argparse
import copy
import importlib
import inspect
import io
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.optim import Optimizer

from continual_metaopt.analysis.files import begin_command
from continual_metaopt.networks.losses import HalfSquaredError, criterion_of
from continual_metaopt.optim.dynamic_parameters import follow_parameters
from continual_metaopt.optim.protocol import closure_for, step_sizes_of, switches_weights, wants_graph
from continual_metaopt.optim.registry import LEARNERS, PREFIXES, MissingPackageError, learner_factory
from continual_metaopt.streams import UnknownNameError


@dataclass(frozen=True)
class Make:
    """Makes the optimizer of a network, and says whether it is for linear models and squared error only."""

    optimizer: Callable[[nn.Module], Optimizer]
    linear: bool = False

    def __call__(self, model: nn.Module) -> Optimizer:
        """Make the optimizer of a network, with the weights at which it takes gradients."""
        optimizer = self.optimizer(model)
        if switches_weights(optimizer):
            optimizer.train()  # type: ignore[attr-defined]
        return optimizer

    def network(self) -> nn.Sequential:
        """Make a small network, always with the same weights, whose last layer can be replaced."""
        generator = torch.Generator().manual_seed(1)
        hidden = [] if self.linear else [nn.Linear(6, 8), nn.Tanh()]
        model = nn.Sequential(*hidden, nn.Linear(6 if self.linear else 8, 3))
        with torch.no_grad():
            for param in model.parameters():
                param.copy_(torch.randn(param.shape, generator=generator) / 3)
        return model

    def backward(self, model: nn.Module, step: int) -> tuple[Tensor, Tensor]:
        """Compute the gradients at the mini-batch of a step; returns loss and output with their graph."""
        generator = torch.Generator().manual_seed(100 + step)
        weight = next(model.parameters())
        x = torch.randn(4, 6, generator=generator).to(weight.dtype)
        target = torch.randint(3, (4,), generator=generator)
        output = model(x)
        if self.linear:
            loss = HalfSquaredError()(output, nn.functional.one_hot(target, output.shape[1]).to(output.dtype))
        else:
            loss = nn.functional.cross_entropy(output, target)
        loss.backward(retain_graph=True)
        return loss, output

    def update(self, optimizer: Optimizer, loss: Tensor, output: Tensor) -> None:
        """Let an optimizer learn from gradients, with the closure that it wants."""
        closure = closure_for(optimizer, loss, output)
        optimizer.step(*([] if closure is None else [closure]))

    def steps(self, model: nn.Module, optimizer: Optimizer, n: int, first: int = 0) -> None:
        """Learn from ``n`` mini-batches, beginning with number ``first``."""
        for step in range(first, first + n):
            optimizer.zero_grad()
            self.update(optimizer, *self.backward(model, step))

    def after_steps(self, n: int) -> tuple[Any, Optimizer]:
        """Make a network and its optimizer that have learned from ``n`` mini-batches."""
        model = self.network()
        optimizer = self(model)
        self.steps(model, optimizer, n)
        return model, optimizer


CHECKS: list[Callable[[Make], None]] = []


def check(function: Callable[[Make], None]) -> Callable[[Make], None]:
    """Enter a check; its docstring's first line says what is required, an AssertionError what was found."""
    CHECKS.append(function)
    return function


@check
def is_a_torch_optimizer(make: Make) -> None:
    """It is a torch.optim.Optimizer over the network's parameters."""
    model = make.network()
    optimizer = make(model)
    assert isinstance(optimizer, Optimizer), f"it is a {type(optimizer).__name__}"
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    assert held == set(map(id, model.parameters())), "its groups do not hold exactly the network's parameters"


@check
def reports_step_sizes(make: Make) -> None:
    """Every group's "lr", or step_size_report(), is a finite number after a step."""
    _, optimizer = make.after_steps(2)
    values = step_sizes_of(optimizer)
    assert values, "no step size is reported"
    bad = {name: value for name, value in values.items() if not torch.isfinite(torch.tensor(value))}
    assert not bad, f"not finite: {bad}"


@check
def is_deterministic(make: Make) -> None:
    """Equal gradients from equal weights give equal weights, bit for bit."""
    _assert_equal(_weights(make.after_steps(5)[0]), _weights(make.after_steps(5)[0]))


@check
def resumes_from_a_state_dict(make: Make) -> None:
    """state_dict, saved and loaded with weights_only=True, goes on bit for bit."""
    model, optimizer = make.after_steps(4)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    restored = make.network()
    restored.load_state_dict(weights)
    successor = make(restored)
    successor.load_state_dict(state)
    make.steps(model, optimizer, 3, first=4)
    make.steps(restored, successor, 3, first=4)
    _assert_equal(_weights(restored), _weights(model))


@check
def can_be_copied(make: Make) -> None:
    """A deep copy together with its network goes on bit for bit."""
    model, optimizer = make.after_steps(3)
    other, twin = copy.deepcopy((model, optimizer))
    make.steps(model, optimizer, 3, first=3)
    make.steps(other, twin, 3, first=3)
    _assert_equal(_weights(other), _weights(model))


@check
def skips_parameters_without_gradient(make: Make) -> None:
    """A parameter whose gradient is None is left alone."""
    model, optimizer = make.after_steps(2)
    before = _weights(model)
    loss, output = make.backward(model, 2)
    for param in model.parameters():
        param.grad = None
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    make.update(optimizer, loss, output)
    after = _weights(model)
    _assert_equal(after[1:], before[1:])


@check
def leaves_gradients_and_storage_alone(make: Make) -> None:
    """step() writes neither to p.grad nor moves a parameter to other memory."""
    model, optimizer = make.after_steps(1)
    loss, output = make.backward(model, 1)
    gradients = [param.grad.clone() for param in model.parameters() if param.grad is not None]
    places = [param.data_ptr() for param in model.parameters()]
    make.update(optimizer, loss, output)
    _assert_equal([param.grad for param in model.parameters() if param.grad is not None], gradients)
    assert [param.data_ptr() for param in model.parameters()] == places, "parameters were moved"


@check
def returns_the_closure_s_loss(make: Make) -> None:
    """step(closure) evaluates the closure and returns its loss."""
    model = make.network()
    optimizer = make(model)

    def closure() -> Any:
        optimizer.zero_grad()
        loss, output = make.backward(model, 0)
        return (loss, output) if wants_graph(optimizer) else loss

    loss = optimizer.step(closure)
    assert loss is not None, "step returned None"
    assert torch.isfinite(torch.as_tensor(loss)), f"step returned {loss}"


@check
def works_in_double_precision(make: Make) -> None:
    """float64 parameters stay float64 and finite."""
    model = make.network().double()
    optimizer = make(model)
    make.steps(model, optimizer, 3)
    assert all(param.dtype == torch.float64 for param in model.parameters()), "the type of parameters changed"
    assert all(bool(param.isfinite().all()) for param in model.parameters()), "weights are not finite"


@check
def follows_a_growing_head(make: Make) -> None:
    """After the last layer was replaced by a larger one, learning goes on."""
    model, optimizer = make.after_steps(3)
    old = dict(model.named_parameters())
    head = nn.Linear(model[-1].in_features, 5)
    with torch.no_grad():
        head.weight[:3], head.bias[:3] = model[-1].weight, model[-1].bias
    model[-1] = head
    follow_parameters(optimizer, old, dict(model.named_parameters()))
    before = head.weight.detach().clone()
    make.steps(model, optimizer, 3, first=3)
    assert not head.weight.equal(before), "the new head is not learned"
    assert all(bool(param.isfinite().all()) for param in model.parameters()), "weights are not finite"


@check
def learns_online(make: Make) -> None:
    """OnlineLearner runs it on a stream of two experiences; no step size or weight becomes infinite."""
    from continual_metaopt.learner.online_learner import OnlineLearner
    from continual_metaopt.streams import make_stream

    if make.linear:
        benchmark = make_stream("tracking", n_samples=200, samples_per_experience=100)
    else:
        benchmark = make_stream("permuted_inputs", n_experiences=2, samples_per_experience=100)
    sizes = benchmark.info.for_learner
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sizes.input_shape), sizes.n_outputs))
    learner = OnlineLearner(model=model, optimizer=make(model), criterion=criterion_of(sizes.task))
    learner.train(benchmark.train_stream)
    assert learner.n_samples == 200, f"{learner.n_samples} of 200 samples were learned from"
    assert all(bool(param.isfinite().all()) for param in model.parameters()), "weights are not finite"
    assert all(0 < value < float("inf") for value in step_sizes_of(learner.optimizer).values()), "step sizes ran away"


def run_contract(optimizer: Callable[[nn.Module], Optimizer], linear: bool = False) -> dict[str, str | None]:
    """Check what this package relies on in an optimizer.

    Args:
        optimizer: makes the optimizer of a network.
        linear: check it on linear models and squared error, for an optimizer that is defined for them only.

    Returns:
        What each check requires, and what was found instead; None where it is fulfilled.

    Example:
        >>> found = run_contract(lambda model: torch.optim.SGD(model.parameters(), lr=0.01))
        >>> len(found), [requirement for requirement, finding in found.items() if finding]
        (11, [])
    """
    results: dict[str, str | None] = {}
    for function in CHECKS:
        requirement = (inspect.getdoc(function) or "").splitlines()[0]
        try:
            function(Make(optimizer, linear))
            results[requirement] = None
        except Exception as error:  # whatever a stranger's optimizer raises is a finding
            results[requirement] = f"{type(error).__name__}: {error}".removeprefix("AssertionError: ")
    return results


def load_target(target: str) -> Any:
    """Find a learner's factory ``(model, **options)``.

    Args:
        target: a registered name, "torch:NAME", "pytorch_optimizer:NAME", or the import path "module:object" of an
            Optimizer class or of a factory.

    Raises:
        UnknownNameError: no such learner.
        MissingPackageError: the learner's package is not installed.
        ImportError, AttributeError: the module or the object in it is not there.

    Example:
        >>> load_target("torch:SGD")(nn.Linear(1, 1), lr=0.5).param_groups[0]["lr"]
        0.5
    """
    if target in list(LEARNERS) or target.startswith(PREFIXES) or ":" not in target:
        return learner_factory(target)
    module, _, name = target.partition(":")
    sys.path.insert(0, "")  # a package in the working directory, as with python -m
    found = getattr(importlib.import_module(module), name)
    if isinstance(found, type) and issubclass(found, Optimizer):
        return lambda model, **options: found(model.parameters(), **options)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks on the optimizer that the arguments name.

    Returns:
        Exit status: 1 if one is not fulfilled, 2 if there is no such optimizer.
    """
    description = (__doc__ or "").split(":")[0]
    parser = argparse.ArgumentParser(prog="python -m continual_metaopt.contract", description=description)
    parser.add_argument("target", help="module:object, a learner's name, or torch:NAME")
    setting = "a setting of the optimizer"
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=setting)
    parser.add_argument("--linear", action="store_true", help="it is for linear models and squared error only")
    arguments = parser.parse_args(begin_command(argv))
    pairs = (option.partition("=") for option in arguments.option)
    options = {name: _value(text) for name, _, text in pairs}
    try:
        make = load_target(arguments.target)
    except (UnknownNameError, MissingPackageError, ImportError, AttributeError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    results = run_contract(partial(make, **options), arguments.linear)
    for requirement, finding in results.items():
        print(f"fulfilled  {requirement}" if finding is None else f"BROKEN     {requirement}\n           {finding}")
    return int(any(results.values()))


def _value(text: str) -> Any:
    """A number, truth value, list or word as in YAML; 1e-3 is a number too."""
    try:
        return float(text) if not text.lstrip("-").isdigit() else int(text)
    except ValueError:
        return yaml.safe_load(text)


def _weights(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def _assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.equal(b), f"tensor {i} differs by up to {float((a - b).abs().max()):.3g}"


if __name__ == "__main__":
    sys.exit(main())
