"""Step sizes by exponentiated gradients: a scale of all steps and a gain of each weight, moved multiplicatively."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import CheckedOptimizer, Group, gradients, require, settings_of
from continual_metaopt.optim.protocol import geometric_mean
from continual_metaopt.optim.registry import LR, STEP_SIZES, LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "exponentiated_gradient",
    "SGD with momentum; step sizes by exponentiated gradients",
    family="learned step sizes",
    space={"lr": LR, "gain_lr": (1e-4, 1e-1, "log"), "scale_lr": (1e-5, 1e-2, "log")},
    paper=(
        'Amid, Anil, Fifty, Warmuth, "Step-size Adaptation Using Exponentiated Gradient Updates", 2022 (arXiv '
        "2202.00145), in the form of the authors' optimizer EGDD in Lingvo"
    ),
)

TINY = 1e-10  # added to norms, as in the original


class ExponentiatedGradient(CheckedOptimizer):
    """Learn the step sizes of SGD with momentum by exponentiated gradients.

    With gradient g, momentum m, running mean ḡ of the gradient, a scale s per group and a gain p per weight, where all
    of m, ḡ on the right are the old ones:

        s ← s exp(η_s ⟨g, m⟩ / (‖g‖ ‖m‖))          normalised; else ⟨g, m⟩ itself
        p ← p exp(η_p sign(g) sign(ḡ))             normalised; else g ḡ / (1 − βᵗ⁻¹)
        m ← μ m + α p g
        ḡ ← β ḡ + (1 − β) g
        w ← w − s m

    s and p stay within their limits. In the authors' code each tensor has a scale of its own, although the paper speaks
    of a global one; here it is a param group's: "scalar" blocks make it global, "tensor" blocks are the code. Its
    defaults: β = 0.9, η_p = 0.01, η_s = 0.001, limits (0.01, 100) of the gain and (0.1, 10) of the scale, normalised.
    It has none for α and μ, for which 1e-3 and 0.9 are our choice.

    ``group["lr"]`` is α, which a scheduler may set; ``step_size_report`` gives s α p, the mean gain being geometric.

    Args:
        lr: step size α at a scale and gains of 1.
        momentum: decay μ of the buffer of steps.
        beta: decay β of the running mean of the gradient.
        gain_lr: meta step size η_p of the gains.
        scale_lr: meta step size η_s of the scale.
        gain_bounds: limits of the gains.
        scale_bounds: limits of the scale.
        normalized: whether the alignment of the gradients counts, or their product.

    Example:
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> ExponentiatedGradient([w], lr=0.1).step()
        >>> round(w.item(), 4)
        0.8
    """

    not_negative = ("lr", "gain_lr", "scale_lr")
    positive = ("lr",)
    below_one = ("momentum", "beta")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        momentum: float = 0.9,
        beta: float = 0.9,
        gain_lr: float = 0.01,
        scale_lr: float = 0.001,
        gain_bounds: tuple[float, float] = (1e-2, 1e2),
        scale_bounds: tuple[float, float] = (1e-1, 1e1),
        normalized: bool = True,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _step_size(self, group: Group) -> float:
        logs = [self.state[param]["log_gain"].flatten() for param in group["params"] if self.state.get(param)]
        gain = geometric_mean(torch.cat(logs).double().exp()) if logs else 1.0
        return float(group["lr"] * group["scale"] * gain)

    def _check(self, group: Group) -> None:
        super()._check(group)
        for name in ("gain_bounds", "scale_bounds"):
            low, high = group[name]
            require(group, name, 0 < low <= 1 <= high < math.inf, "be two positive numbers around 1")
        group.setdefault("scale", 1.0)

    def _update(self, loss: Any) -> None:
        for group in self.param_groups:
            pairs = list(gradients(self, group))
            for param, _ in pairs:
                self._prepared_state(param, "log_gain", "momentum", "mean_gradient").setdefault("step", 0)
            if pairs:
                self._move_scale(pairs, group)
            for param, grad in pairs:
                self._move(param, grad, group)

    def _move_scale(self, pairs: list[tuple[Tensor, Tensor]], group: Group) -> None:
        grads = [grad.flatten() for _, grad in pairs]
        momenta = [self.state[param]["momentum"].flatten() for param, _ in pairs]
        alignment = _total_product(grads, momenta)
        if group["normalized"]:
            sizes = [math.sqrt(_total_product(vectors, vectors)) for vectors in (grads, momenta)]
            alignment /= (sizes[0] + TINY) * (sizes[1] + TINY)
        low, high = group["scale_bounds"]
        log_scale = math.log(group["scale"]) + group["scale_lr"] * alignment
        group["scale"] = math.exp(min(max(log_scale, math.log(low)), math.log(high)))

    def _move(self, param: Tensor, grad: Tensor, group: Group) -> None:
        state, beta = self.state[param], group["beta"]
        mean = state["mean_gradient"]
        if group["normalized"]:
            alignment = grad.sign().mul_(mean.sign())
        else:
            alignment = (grad * mean).div_(1 - beta ** max(state["step"], 1))
        low, high = group["gain_bounds"]
        log_gain = state["log_gain"].add_(alignment, alpha=group["gain_lr"]).clamp_(math.log(low), math.log(high))
        gain = torch.exp(log_gain, out=alignment)
        state["momentum"].mul_(group["momentum"]).addcmul_(gain, grad, value=group["lr"])
        mean.mul_(beta).add_(grad, alpha=1 - beta)
        param.sub_(state["momentum"], alpha=group["scale"])
        state["step"] += 1


def _total_product(left: list[Tensor], right: list[Tensor]) -> float:
    """Inner product of vectors that are in several pieces."""
    return torch.stack([torch.dot(a, b) for a, b in zip(left, right, strict=True)]).sum().item()


exponentiated_gradient = learner_of(
    ExponentiatedGradient, "scalar", docs={"step_sizes": STEP_SIZES.replace("step size", "scale")}
)
