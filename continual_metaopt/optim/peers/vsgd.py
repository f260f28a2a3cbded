"""vSGD: a step size for each weight from the mean and the variance of its gradients, and its curvature."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import CheckedOptimizer, Group, gradients, require, settings_of
from continual_metaopt.optim.protocol import geometric_mean_of_positive
from continual_metaopt.optim.registry import LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "vsgd",
    "vSGD: step sizes from mean, variance and curvature of each weight's gradient",
    family="no step size to choose",
    space="it estimates its step sizes; what it has beside are lengths of its start",
    paper=(
        'Schaul, Zhang, LeCun, "No More Pesky Learning Rates", ICML 2013; in the form "vSGD-fd" of Schaul, LeCun,'
        ' "Adaptive learning rates and parallelization for stochastic, sparse, non-smooth gradients", ICLR 2013'
    ),
)

AVERAGES = ("gradient", "square", "curvature", "curvature_square")


class VSGD(CheckedOptimizer):
    """Estimate a step size for each weight, without a setting to tune, from single samples (vSGD-fd).

    With gradient g and curvature h of a sample, running means ḡ of g, v̄ of g² + ε, h̄ of h and s̄ of h², and a memory
    τ, all per weight, in this order:

        τ ← τ + 1                                  at an outlier: |g − ḡ| > k √(v̄ − ḡ²) or |h − h̄| > k √(s̄ − h̄²)
        x̄ ← (1 − 1/τ) x̄ + x / τ                    for the four means
        α ← ḡ² / v̄ · (h̄ + ε) / (s̄ + ε)
        τ ← (1 − ḡ²/v̄) τ + 1
        w ← w − α g

    Slow start: n₀ samples without steps, of which the means are plain averages; then v̄ and h̄ are multiplied by C, s̄
    by C², and τ = 2. The authors' two implementations differ. n₀ = 10, C = 2, τ = 2 and ε = 1e-9 are those of Schaul's
    PyOptim, which multiplies v̄ alone and has k = 1; k = 2 and what C multiplies are those of their code for Lua Torch,
    which for d weights has n₀ = √d and C = max(2, d / 10). Weights that a growing head adds have a slow start of their
    own. Of PyOptim two more things are otherwise: it adds ε to v̄ in every step, so that v̄ has a surplus of τ ε, where
    here g² + ε is averaged; and its slow start measures all n₀ curvatures along the mean gradient of these samples,
    where here the direction is the mean so far.

    The curvature is the one of "fd", hᵢ = |∂ᵢL(w + v) − ∂ᵢL(w)| / |vᵢ| along v = ḡ + ε (at a weight's first sample
    v = g + ε), rather than the first paper's, a diagonal that is propagated backwards layer by layer and would need
    support by every module. The difference of gradients is taken in the limit of short v, as a Hessian-vector product:
    hᵢ = |(∇²L v)ᵢ| / |vᵢ|. That costs one backward pass through the gradient, and no second forward pass at other
    weights, which a learner on a stream has no way to ask for.

    ``step`` wants a closure that returns (loss, output) or the loss with its graph.

    Args:
        init_samples: samples n₀ of the slow start, in which no weight moves.
        slow_constant: by how much, C, the slow start overestimates gradients' squares and curvatures.
        outlier_level: standard deviations k beyond which a gradient or a curvature is an outlier.
        eps: ε, added against divisions by 0.

    Example:
        >>> w = torch.ones(1, requires_grad=True)
        >>> optimizer = VSGD([w], init_samples=1, slow_constant=1.0)
        >>> for _ in range(2):
        ...     _ = optimizer.step(lambda: w.square().sum())
        >>> round(optimizer.step_size_report()["group0"], 4)
        0.5
    """

    positive = ("outlier_level", "eps")

    wants_graph = True

    def __init__(
        self,
        params: ParamsT,
        *,
        init_samples: int = 10,
        slow_constant: float = 2.0,
        outlier_level: float = 2.0,
        eps: float = 1e-9,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _step_size(self, group: Group) -> float:
        states = [self.state[param] for param in group["params"] if self.state.get(param)]
        return geometric_mean_of_positive(state["step_size"] for state in states)

    def _check(self, group: Group) -> None:
        super()._check(group)
        require(group, "init_samples", group["init_samples"] >= 1, "be at least 1")
        require(group, "slow_constant", group["slow_constant"] >= 1, "be at least 1")

    def _update(self, loss: Any) -> None:
        if not (isinstance(loss, Tensor) and loss.requires_grad):
            raise ValueError(
                "VSGD needs the loss with its graph: in place of loss.backward() and optimizer.step(), call "
                "optimizer.step(lambda: loss)"
            )
        params = [param for group in self.param_groups for param in group["params"]]
        with torch.enable_grad():
            graphs = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        if all(param.grad is None for param in params):
            for param, graph in zip(params, graphs, strict=True):
                param.grad = None if graph is None else graph.detach().clone()
        graph_of = dict(zip(params, graphs, strict=True))
        learned = [(param, grad, group) for group in self.param_groups for param, grad in gradients(self, group)]
        along = [self._along(param, grad, group) for param, grad, group in learned]
        chosen = [param for param, _, _ in learned]
        products = hessian_product([graph_of[param] for param in chosen], chosen, along)
        for (param, grad, group), direction, product in zip(learned, along, products, strict=True):
            curvature = torch.where(direction != 0, (product / direction).abs_(), 0.0)
            step_size = _step_sizes(self.state[param], grad, curvature, group)
            param.addcmul_(step_size, grad, value=-1)

    def _along(self, param: Tensor, grad: Tensor, group: Group) -> Tensor:
        state = self._prepared_state(param, "n_samples", "memory", "step_size", *AVERAGES)
        direction = state["gradient"]
        if state["n_samples"].min() == 0:
            direction = torch.where(state["n_samples"] > 0, direction, grad)
        return direction + group["eps"]


def hessian_product(graphs: list[Tensor | None], params: list[Tensor], along: list[Tensor]) -> list[Tensor]:
    """Multiply the Hessian with a direction.

    Args:
        graphs: gradients of the loss by ``params`` with their graphs, None for those that it does not depend on.
        params: that the Hessian is of.
        along: the direction, in the parameters' shapes.
    """
    pairs = [(graph, v) for graph, v in zip(graphs, along, strict=True) if graph is not None and graph.requires_grad]
    if not pairs:
        return [torch.zeros_like(param) for param in params]
    outputs, directions = [graph for graph, _ in pairs], [v for _, v in pairs]
    products = torch.autograd.grad(outputs, params, directions, allow_unused=True)
    return [
        torch.zeros_like(param) if product is None else product for param, product in zip(params, products, strict=True)
    ]


def _step_sizes(state: dict[str, Any], grad: Tensor, curvature: Tensor, group: Group) -> Tensor:
    """Bring one parameter's statistics up to date; returns its step sizes, 0 where a slow start is not over."""
    n_samples, memory, eps = state["n_samples"], state["memory"], group["eps"]
    mean, square, mean_curvature, curvature_square = (state[name] for name in AVERAGES)
    outliers = _outliers(grad, mean, square, group)
    memory.add_(outliers.logical_or_(_outliers(curvature, mean_curvature, curvature_square, group)))
    starting = n_samples < group["init_samples"] if n_samples.min() < group["init_samples"] else None
    rate = (memory if starting is None else torch.where(starting, n_samples + 1, memory)).reciprocal()
    values = (grad, grad.square().add_(eps), curvature, curvature.square())
    for name, value in zip(AVERAGES, values, strict=True):
        state[name].lerp_(value, rate)
    n_samples.add_(1)
    reliability = mean.square().div_(square)
    step_size = torch.add(mean_curvature, eps, out=state["step_size"]).mul_(reliability).div_(curvature_square + eps)
    memory.mul_(torch.sub(1, reliability, out=reliability)).add_(1)
    if starting is not None:
        step_size.masked_fill_(starting, 0.0)
        ended = n_samples == group["init_samples"]
        memory.masked_fill_(starting, 0.0).masked_fill_(ended, 2.0)
        slowed = torch.where(ended, group["slow_constant"], 1.0)
        square.mul_(slowed)
        mean_curvature.mul_(slowed)
        curvature_square.mul_(slowed.square())
    return step_size


def _outliers(values: Tensor, mean: Tensor, mean_square: Tensor, group: Group) -> Tensor:
    """Which values are further from their mean than an outlier's level allows."""
    variance = mean.square()
    torch.sub(mean_square, variance, out=variance)
    deviation = (values - mean).square_()
    return deviation > variance.mul_(group["outlier_level"] ** 2)


vsgd = learner_of(VSGD)
