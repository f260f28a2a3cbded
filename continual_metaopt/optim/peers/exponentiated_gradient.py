"""Step sizes by exponentiated gradients: a scale of all steps and a gain of each weight, moved multiplicatively."""

import math
from typing import Any, ClassVar

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, require, settings_of
from continual_metaopt.optim.elementwise import Elementwise, Reduction, exp, log, maximum, minimum, sign, where
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


class ExponentiatedGradient(Elementwise):
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
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> ExponentiatedGradient([w], lr=0.1).step()
        >>> round(w.item(), 4)
        0.8
    """

    not_negative = ("lr", "gain_lr", "scale_lr")
    positive = ("lr",)
    below_one = ("momentum", "beta")
    keeps = ("log_gain", "momentum", "mean_gradient")
    measures: ClassVar[dict[str, Reduction]] = {"product": "sum", "square": "sum", "momentum_square": "sum"}
    decides = ("scale",)

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

    def _check(self, group: Group) -> None:
        super()._check(group)
        for name in ("gain_bounds", "scale_bounds"):
            low, high = group[name]
            require(group, name, 0 < low <= 1 <= high < math.inf, "be two positive numbers around 1")
        group.setdefault("scale", 1.0)

    def numbers(self, group: Group) -> dict[str, float]:
        """Give μ, and the limits of the logarithms of scale and gain."""
        names = ("least_gain", "largest_gain", "least_scale", "largest_scale")
        limits = map(math.log, (*group["gain_bounds"], *group["scale_bounds"]))
        return super().numbers(group) | {"mu": group["momentum"]} | dict(zip(names, limits, strict=True))

    @staticmethod
    def measure(g: Any, momentum: Any) -> Any:
        """Multiply gradient and momentum by each other, and by themselves."""
        return g * momentum, g * g, momentum * momentum

    @staticmethod
    def decide(
        product: float,
        square: float,
        momentum_square: float,
        scale: float,
        scale_lr: float,
        normalized: float,
        least_scale: float,
        largest_scale: float,
    ) -> float:
        """Move the scale."""
        if normalized > 0:
            product = product / ((math.sqrt(square) + TINY) * (math.sqrt(momentum_square) + TINY))
        return math.exp(min(max(math.log(scale) + scale_lr * product, least_scale), largest_scale))

    @staticmethod
    def move(
        w: Any,
        g: Any,
        log_gain: Any,
        momentum: Any,
        mean_gradient: Any,
        lr: float,
        scale: float,
        mu: float,
        beta: float,
        gain_lr: float,
        normalized: float,
        least_gain: float,
        largest_gain: float,
        step: int,
    ) -> Any:
        """Move the gain, and step along the momentum."""
        correction = where(normalized > 0, 1.0, 1 - beta ** max(step - 1, 1))
        alignment = where(normalized > 0, sign(g) * sign(mean_gradient), g * mean_gradient / correction)
        log_gain = minimum(maximum(log_gain + gain_lr * alignment, least_gain), largest_gain)
        momentum = mu * momentum + lr * exp(log_gain) * g
        return w - scale * momentum, log_gain, momentum, beta * mean_gradient + (1 - beta) * g

    @staticmethod
    def log_step_size(log_gain: Any, lr: float, scale: float) -> Any:
        """Take the logarithm of scale, step size and gain."""
        return log(lr * scale) + log_gain

    @staticmethod
    def step_size(lr: float, scale: float) -> float:
        """Give that of a gain of 1."""
        return lr * scale


exponentiated_gradient = learner_of(
    ExponentiatedGradient, "scalar", docs={"step_sizes": STEP_SIZES.replace("step size", "scale")}
)
