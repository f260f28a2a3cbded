"""What others put around steps and layers is called, whichever engine is asked for."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import pytest
import torch
from torch import nn
from torch.nn.modules import module as modules
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from continual_metaopt.engines.wrapped import why_modules_are_needed, why_step_is_needed
from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.streams import make_stream

N = 120  # samples, enough for tracing
CALLS: list[object] = []

Pair = tuple[nn.Sequential, MetaOptimize]


def note(*arguments: Any) -> None:
    CALLS.append(arguments)


def noting(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        note()
        return function(*arguments, **options)

    return wrapper


class Own(nn.Linear):
    """A layer that puts something around its own forward."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__(n_inputs, n_outputs)
        self.forward = noting(super().forward)  # type: ignore[method-assign]


def made(last: type[nn.Linear] = nn.Linear) -> Pair:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 6), nn.ReLU()), last(6, 10))
    return model, MetaOptimize(blocks(model), 1e-3)


@contextmanager
def around(thing: Any, name: str) -> Iterator[None]:
    """Something around a method of an object or a class."""
    own, before = name in vars(thing), getattr(thing, name)
    setattr(thing, name, noting(before))
    try:
        yield
    finally:
        setattr(thing, name, before) if own else delattr(thing, name)


@contextmanager
def registered(register: Callable[..., Any]) -> Iterator[None]:
    handle = register(note)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def after_a_scheduler(optimizer: MetaOptimize) -> Iterator[None]:
    torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    with around(optimizer, "step"):
        yield


STEP, FORWARD = "the optimizer's step() has been replaced", "forward() has been replaced"
STEPS: dict[str, tuple[Callable[[Pair], Any], str]] = {
    "the step": (lambda pair: around(pair[1], "step"), STEP),
    "the step, after a scheduler": (lambda pair: after_a_scheduler(pair[1]), STEP),
    "the step of the class": (lambda pair: around(MetaOptimize, "step"), STEP),
    "all steps, before": (
        lambda pair: registered(register_optimizer_step_pre_hook),
        "there are hooks for all optimizers",
    ),
    "all steps, after": (
        lambda pair: registered(register_optimizer_step_post_hook),
        "there are hooks for all optimizers",
    ),
    "one step": (lambda pair: registered(pair[1].register_step_post_hook), "the optimizer has hooks"),
}
LAYERS: dict[str, tuple[Callable[[Pair], Any], str]] = {
    "a layer": (lambda pair: around(pair[0][2], "forward"), f"Linear's {FORWARD}"),
    "layers together": (lambda pair: around(pair[0][1], "forward"), f"Sequential's {FORWARD}"),
    "the network": (lambda pair: around(pair[0], "forward"), f"Sequential's {FORWARD}"),
    "a kind of layer": (lambda pair: around(nn.Linear, "forward"), f"Linear's {FORWARD}"),
    "all modules": (lambda pair: around(nn.Module, "__call__"), "Sequential's __call__() has been replaced"),
    **{
        f"all modules, by {register.__name__}": (
            lambda pair, register=register: registered(register),
            "there are hooks for all networks",
        )
        for register in (
            modules.register_module_forward_hook,
            modules.register_module_forward_pre_hook,
            modules.register_module_full_backward_hook,
            modules.register_module_full_backward_pre_hook,
        )
    },
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("engine", ["auto", pytest.param("fused", marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", [*STEPS, *LAYERS])
def test_it_is_called_at_every_sample(what: str, engine: Any) -> None:
    wrap, reason = (STEPS | LAYERS)[what]
    pair = model, optimizer = made()
    with wrap(pair):
        assert (why_step_is_needed(optimizer) or why_modules_are_needed(model)) == reason
        learner = OnlineLearner(model=model, optimizer=optimizer, engine=engine)
        CALLS.clear()
        learner.train(make_stream("permuted_inputs", n_experiences=1, samples_per_experience=N).train_stream)
    assert len(CALLS) >= N
    if engine == "auto":
        assert learner.engine["reason"].startswith(f"not compiled: {reason}")
    assert why_step_is_needed(optimizer) is None or "scheduler" in what
    assert why_modules_are_needed(model) is None


def test_a_layer_that_wraps_itself_is_called_at_every_sample() -> None:
    model, optimizer = made(Own)
    learner = OnlineLearner(model=model, optimizer=optimizer)
    CALLS.clear()
    learner.train(make_stream("permuted_inputs", n_experiences=1, samples_per_experience=N).train_stream)
    assert len(CALLS) >= N


@pytest.mark.parametrize("engine", ["torch", "fused", "compiled"])
def test_schedulers_know_that_steps_were_made(engine: Any) -> None:
    model, optimizer = made()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    assert why_step_is_needed(optimizer) is None
    learner = OnlineLearner(model=model, optimizer=optimizer, engine=engine)
    learner.train(make_stream("permuted_inputs", n_experiences=1, samples_per_experience=20).train_stream)
    assert learner.engine["name"] == engine
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()


def test_schedulers_warn_where_no_step_was_made() -> None:
    _, optimizer = made()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()
