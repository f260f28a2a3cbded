"""Continual backprop: hidden units that are of little use are replaced by new ones."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, OnBase, noise_of, require, require_known
from continual_metaopt.optim.base_updates import Base, BaseUpdate
from continual_metaopt.optim.peers.sequential_units import HiddenUnits, UnitActivity, mean_size
from continual_metaopt.optim.registry import DECOUPLED_DECAY, LR, LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "continual_backprop",
    "a base update, after which hidden units of little use are replaced",
    family="made for changing streams",
    space={"lr": LR, "replacement_rate": [1e-6, 1e-5, 1e-4], "weight_decay": DECOUPLED_DECAY},
    paper=(
        'Dohare, Hernandez-Garcia, Lan, Rahman, Mahmood, Sutton, "Loss of plasticity in deep continual learning",'
        " Nature 2024"
    ),
    on_a_base=True,
)

Initialisation = Literal["torch", "kaiming"]
RESTARTS = "restarts"  # in a parameter's state: the steps at which its outputs and inputs were replaced, 0 if never


class Known(NamedTuple):
    """A parameter, and what the base update knows of it.

    Attributes:
        values: of the parameter.
        moments: tensors of its shape.
        step: number of its updates, if they are counted.
        restarts: the steps at which its "outputs" and "inputs" were replaced, which broadcast against it.
    """

    values: Tensor
    moments: dict[str, Tensor]
    step: float | None
    restarts: dict[str, Tensor]

    def restart(self, side: str, view: Callable[[Tensor], Tensor], chosen: Any) -> None:
        """Let the base update begin anew with some outputs or inputs, chosen in a view of the parameter."""
        for values in self.moments.values():
            view(values)[chosen] = 0
        if self.step is not None:
            view(self.restarts[side])[chosen] = self.step


def no_restarts(param: Tensor) -> dict[str, Tensor]:
    """Give the restarts of a parameter of which nothing has been replaced."""
    shapes = {
        "outputs": [len(param), *[1] * (param.dim() - 1)],
        "inputs": [1, *param.shape[1:2], *[1] * (param.dim() - 2)],
    }
    return {side: param.new_zeros(shape) for side, shape in shapes.items() if side == "outputs" or param.dim() > 1}


class ContinualBackprop(OnBase):
    """Replace hidden units with the least utility after each base update (Algorithm 1 of the paper).

    For each layer of hidden units i, with activations h and weights w_ki leading away from them:

        a_i ← a_i + 1                                        age
        u_i ← η u_i + (1 − η) |h_i| · mean_k |w_ki|          contribution utility
        budget ← budget + ρ · (number of units with a_i > m)
        while budget ≥ 1: replace the unit with a_i > m and the least u_i / (1 − η^a_i); budget ← budget − 1

    |h_i| is from the forward pass that the gradient is of, w_ki from after the base update. A new unit has new weights
    leading to it, a bias of 0, and weights of 0 leading away; its age and utility start from 0, and so does all that
    the base update knows of these weights, Adam's number of steps included. In a convolution a unit is a channel:
    absolute values are averaged over its positions, and weights over the kernel's. In a mini-batch |h_i| is a mean.

    The authors' code has several forms that deviate from each other, and from the paper:

    - The budget grows with the number of mature units in the paper, the code for linear networks and here. In that for
      convolutional networks it grows with all of them as soon as one is mature. It must not grow before: then a whole
      layer would be replaced at once when it matures.
    - The code for linear networks means to add what a unit contributed on average to the biases of the next layer, but
      sets that mean to 0 first, so that nothing is added. The paper has no such thing, nor has this.
    - Units are ranked by the utility with its bias corrected, as in the paper's text and the code; not by u itself,
      which is least for the youngest. The code's later form for linear layers (``CBPLinear``) keeps no mean of the
      utility at all.
    - The experiment with permuted MNIST reads the maturity from a key "mt" only if there is another key, which there is
      not, and so takes its default, which is the same 100.
    - Their ``AdamGnT`` computes the factor √(1 − β₂ᵗ) / (1 − β₁ᵗ) of Adam's bias correction and drops it; its steps
      have 1 − β₂ᵗ instead, so that they are near 0 at first, and again for weights of new units. Here it is Adam.
    - Where a convolution feeds a linear layer, the code averages |h| · |w| over positions; here it is the mean of |h|
      times that of |w|.
    - Without its option ``accumulate``, the code for linear networks draws at random whether the fraction of a unit in
      the budget counts, in place of adding fractions up. Its class has a maturity of 20 by default.
    - For convolutions, the code leaves Adam's first moment of the weights that lead to a new unit as it was.
    - Defaults: ρ = 1e-4, η = 0.99 and m = 100 are those of the experiments with permuted MNIST and of the code for
      convolutions. ``ContinualBackprop`` itself has ρ = 1e-3, η = 0.9. Utility "contribution" is the classes' default
      and the paper's; the experiments with permuted MNIST use "adaptable_contribution", which also takes into account
      the weights that lead to a unit and the mean of its activation. The step size there is 0.003, with SGD.
    - New weights are drawn as the network's first ones were: by default uniformly from ±1 / √(fan in), which is
      PyTorch's distribution; "kaiming" is the authors', ±√(6 / fan in), for networks that start like that.

    The network must be run with gradients enabled before each step, and other forward passes under ``torch.no_grad()``.
    If it is run more than once, the last counts. Units of a layer without gradients are left alone.

    Args:
        model: linear layers and convolutions, one after the other, with activations, pooling and flattening between.
        lr: step size α.
        base: name of the base update.
        weight_decay: decoupled weight decay κ.
        replacement_rate: ρ: share of mature units that are replaced at each step.
        maturity: steps m in which a unit is safe.
        decay: weight η of the past in a unit's utility.
        init: how new weights are drawn: "torch" as PyTorch draws first weights, "kaiming" as the authors do.
        seed: of these draws.
        params: its parameters or param groups; None for all that are trainable.

    Raises:
        ValueError: the network is of another kind, or a setting is out of range.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> optimizer = ContinualBackprop(model, replacement_rate=0.25, maturity=0)
        >>> model(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()  # replaces one of the four hidden units
        >>> int((model[2].weight == 0).sum())
        1
    """

    not_negative = (*OnBase.not_negative, "maturity", "seed")
    below_one = ("decay",)

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        *,
        base: Base = "adamw",
        weight_decay: float = 0.0,
        replacement_rate: float = 1e-4,
        maturity: int = 100,
        decay: float = 0.99,
        init: Initialisation = "torch",
        seed: int = 0,
        params: ParamsT | None = None,
    ) -> None:
        settings = {"replacement_rate": replacement_rate, "maturity": maturity, "decay": decay, "init": init}
        trainable = [param for param in model.parameters() if param.requires_grad]
        chosen = trainable if params is None else params
        super().__init__(chosen, lr, base=base, weight_decay=weight_decay, **settings, seed=seed)
        self.activity = UnitActivity(model)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"activity": self.activity}

    def _check(self, group: Group) -> None:
        super()._check(group)
        rate = group["replacement_rate"]
        require(group, "replacement_rate", 0 <= rate <= 1, "be within 0 and 1")
        require_known("initialisation", group["init"], Initialisation)

    def _update(self, loss: Any) -> None:
        activities = self.activity.take()
        super()._update(loss)
        for units, activity in activities:
            if units.after.weight.grad is not None and units.before.weight.grad is not None:
                group = self.group_of(units)
                if group is not None and self._use(units, activity, group):
                    self.replace(units, group, self.state[units.before.weight], self.known)

    def _move(self, param: Tensor, grad: Tensor, base: BaseUpdate, group: Group) -> None:
        state = self.state[param]
        if RESTARTS not in state:
            super()._move(param, grad, base, group)
            return
        known = state["base"] | {"step": _StepsSince(state["base"]["step"], tuple(state[RESTARTS].values()))}
        direction = base.direction(known, grad).quotient()
        state["base"]["step"] = known["step"].step
        param.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])

    def group_of(self, units: HiddenUnits) -> Group | None:
        """Find the param group of the weights that lead to hidden units; None if they are not this optimizer's."""
        weight = units.before.weight
        return next((group for group in self.param_groups if any(p is weight for p in group["params"])), None)

    def use_of(self, units: HiddenUnits) -> dict[str, Any]:
        """Give what is kept of hidden units: "age", "utility" and "budget", in the state of what leads to them."""
        weight = units.before.weight
        state = self.state[weight]
        if "age" not in state:
            n = len(weight)
            state.update({"age": weight.new_zeros(n), "utility": weight.new_zeros(n), "budget": 0.0})
        return state

    def _use(self, units: HiddenUnits, activity: Tensor, group: Group) -> bool:
        """Let units grow older, and take in what they contribute; returns whether one is due to be replaced."""
        state = self.use_of(units)
        state["age"] += 1
        state["utility"].lerp_(activity * mean_size(units.per_unit(units.after.weight)), 1 - group["decay"])
        state["budget"] += group["replacement_rate"] * int((state["age"] > group["maturity"]).sum())
        return bool(state["budget"] >= 1)

    @torch.no_grad()
    def replace(
        self, units: HiddenUnits, group: Group, state: dict[str, Any], known: Callable[[Tensor], Known]
    ) -> None:
        """Replace the units that are due.

        Args:
            units: of a layer whose budget is 1 or more.
            group: of the weights that lead to them.
            state: their "age", "utility" and "budget", changed in place.
            known: gives what is to be changed for a parameter.
        """
        n = int(state["budget"])
        state["budget"] -= n
        mature = (state["age"] > group["maturity"]).nonzero().flatten()
        corrected = state["utility"][mature] / (1 - group["decay"] ** state["age"][mature])
        chosen = mature[corrected.argsort(stable=True)[:n]]

        before, after = units.before, units.after
        weight = known(before.weight)
        bound = math.sqrt((6 if group["init"] == "kaiming" else 1) / before.weight[0].numel())
        with noise_of(self) as noise:
            weight.values[chosen] = noise.uniform_like(weight.values[chosen], bound)
        weight.restart("outputs", lambda values: values, chosen)
        away = known(after.weight)
        units.per_unit(away.values)[:, chosen] = 0
        away.restart("inputs", units.per_unit, (slice(None), chosen))
        if before.bias is not None:
            bias = known(before.bias)
            bias.values[chosen] = 0
            bias.restart("outputs", lambda values: values, chosen)
        for name in ("age", "utility"):
            state[name][chosen] = 0

    def known(self, param: Tensor) -> Known:
        """Give a parameter and what the base update knows of it."""
        state = self.state.get(param, {})
        base = dict(state.get("base", {}))
        step = base.pop("step", None)
        restarts = {} if step is None else state.setdefault(RESTARTS, no_restarts(param))
        return Known(param, base, step, restarts)


@dataclass(frozen=True)
class _StepsSince:
    """Steps since each weight of a parameter began anew, where a base update expects a number of steps."""

    step: int
    restarts: tuple[Tensor, ...]

    def __add__(self, n: int) -> "_StepsSince":
        return _StepsSince(self.step + n, self.restarts)

    def __rpow__(self, decay: float) -> "_Powers":
        return _Powers([decay ** (self.step - since.double()) for since in self.restarts], self.restarts[0].dtype)


@dataclass(frozen=True)
class _Powers:
    """Powers of which the largest holds for a weight, in 1 − power."""

    powers: list[Tensor]
    dtype: torch.dtype

    def __rsub__(self, one: float) -> Tensor:
        return reduce(torch.minimum, [(one - power).to(self.dtype) for power in self.powers])


continual_backprop = learner_of(ContinualBackprop)
