"""Optimizers that predict with other weights than they learn at are driven with the right ones at each place."""

from typing import Any

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn

from continual_metaopt.engines.torch_engine import accuracy
from continual_metaopt.learner.metrics.diagnostics import named_diagnostics
from continual_metaopt.learner.online_learner import OnlineLearner, quiet_evaluator
from continual_metaopt.streams import make_stream
from tests.continual_metaopt.conftest import Collector, exactly, small_network
from tests.continual_metaopt.learner.parts import weights

LR = 0.05


class Halves(torch.optim.SGD):
    """Predicts with half of the weights."""

    predicts = False

    @torch.no_grad()
    def eval(self) -> None:
        if not self.predicts:
            for p in self.param_groups[0]["params"]:
                p.div_(2)
        self.predicts = True

    @torch.no_grad()
    def train(self) -> None:
        if self.predicts:
            for p in self.param_groups[0]["params"]:
                p.mul_(2)
        self.predicts = False

    def step(self, closure: Any = None) -> Any:
        assert not self.predicts
        return super().step(closure)


class Listener(SupervisedPlugin):
    """Makes the learner run all callbacks, which find the weights to predict with."""

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        assert strategy.optimizer.predicts or strategy.n_samples == 0

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        assert strategy.optimizer.predicts

    before_update = after_update = after_backward


class Penalty(SupervisedPlugin):
    """Adds to the loss what depends on the weights."""

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        strategy.loss = strategy.loss + next(strategy.model.parameters()).square().sum()


class Evaluates(SupervisedPlugin):
    """Notes the weights that evaluation uses."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def before_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.weights = weights(strategy.model)


@pytest.fixture(scope="module")
def benchmark() -> Any:
    return make_stream("permuted_inputs", n_experiences=2, samples_per_experience=20)


def by_hand(benchmark: Any) -> tuple[nn.Module, list[float], list[bool]]:
    """Predictions with half of the weights w, gradients at w; the network has w / 2 at the end."""
    learns, predicts = small_network(), small_network()
    losses, correct = [], []

    def halve() -> None:
        predicts.load_state_dict({name: value / 2 for name, value in learns.state_dict().items()})

    for experience in benchmark.train_stream:
        for x, y, *_ in experience.dataset:
            inputs, target = torch.as_tensor(x)[None], torch.tensor([int(y)])
            halve()
            output = predicts(inputs).detach()
            losses.append(nn.functional.cross_entropy(output, target).item())
            correct.append(bool(output.argmax() == target))
            learns.zero_grad()
            nn.functional.cross_entropy(learns(inputs), target).backward()
            with torch.no_grad():
                for p in learns.parameters():
                    p.add_(p.grad, alpha=-LR)  # type: ignore[arg-type]
    halve()
    return predicts, losses, correct


@pytest.mark.parametrize("listening", [False, True])
def test_predictions_and_gradients_are_each_at_their_weights(benchmark: Any, listening: bool) -> None:
    expected, losses, correct = by_hand(benchmark)
    model, seen, evaluates = small_network(), Collector(), Evaluates()
    learner = OnlineLearner(
        model=model,
        optimizer=Halves(model.parameters(), LR),
        engine="torch",
        recorder=seen,
        plugins=[evaluates, *([Listener()] if listening else [])],
    )
    learner.train(benchmark.train_stream)

    assert seen.all("loss") == losses
    assert seen.all("correct") == correct
    held_out = benchmark.test_stream[0].dataset
    device = torch.device("cpu")
    assert accuracy(model, held_out, device) == accuracy(expected, held_out, device)
    learner.eval(benchmark.test_stream[:1])
    for found in (weights(model), evaluates.weights):
        assert all(a.equal(b) for a, b in zip(found, weights(expected), strict=True))


def test_diagnostics_see_them_and_change_nothing(benchmark: Any) -> None:
    expected, losses, _ = by_hand(benchmark)
    model, seen = small_network(), Collector()
    diagnostics = named_diagnostics(["plasticity", "update_ratio", "gradient_norm"], 5, benchmark.test_stream)
    learner = OnlineLearner(
        model=model,
        optimizer=Halves(model.parameters(), LR),
        engine="torch",
        recorder=seen,
        evaluator=quiet_evaluator(*diagnostics),
    )
    learner.train(benchmark.train_stream)

    assert seen.all("loss") == losses
    assert all(a.equal(b) for a, b in zip(weights(model), weights(expected), strict=True))


def test_further_terms_of_the_loss_are_refused(benchmark: Any) -> None:
    model = small_network()
    learner = OnlineLearner(model=model, optimizer=Halves(model.parameters(), LR), plugins=[Penalty()])
    message = (
        "a plugin adds to the loss, but Halves takes gradients at other weights than it predicts with; "
        "leave the plugin out, or take another optimizer"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        learner.train(benchmark.train_stream)
