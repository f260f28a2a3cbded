"""A noisy quadratic bowl, from a step size that is 100 times too small; draws the loss and the step size.

The bowl is f(w) = ½ Σ λᵢ wᵢ², with curvatures λ from 0.1 to 1 in 20 dimensions; each gradient has normal noise. A
fixed step size is either too small to arrive, or too large to come close to the minimum. MetaOptimize raises its own
step size first, and lowers it where only noise is left. Lines are means over 10 seeds.
"""

import sys
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch

from continual_metaopt import MetaOptimize

N_STEPS, N_SEEDS, NOISE = 5000, 10, 0.3
curvatures = torch.logspace(-1, 0, 20)
Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
contenders: dict[str, Make] = {
    f"SGD, α = {lr:g}": lambda w, lr=lr: torch.optim.SGD(w, lr=lr) for lr in (0.001, 0.01, 0.1)
} | {
    "MetaOptimize from α = 0.001": lambda w: MetaOptimize(
        w, lr=1e-3, base="sgd", meta="adam", weight_decay=0.0, meta_lr=0.03, gamma=0.99, trace="hessian_free"
    )
}


def course(make: Make, seed: int) -> tuple[list[float], list[float]]:
    """The loss before each step, and the step size."""
    torch.manual_seed(seed)
    w = torch.nn.Parameter(torch.full((20,), 3.0))
    optimizer = make([w])
    losses, step_sizes = [], []
    for _ in range(N_STEPS):
        losses.append((curvatures * w.detach().square()).sum().item() / 2)
        report = getattr(optimizer, "step_size_report", None)
        step_sizes.append(next(iter(report().values())) if report else optimizer.param_groups[0]["lr"])
        w.grad = curvatures * w.detach() + NOISE * torch.randn(20)
        optimizer.step()
    return losses, step_sizes


plt.style.use("tableau-colorblind10")
figure, (above, below) = plt.subplots(2, sharex=True, figsize=(5, 4.5), layout="constrained")
for (name, make), style in zip(contenders.items(), (":", "--", "-.", "-"), strict=True):
    losses, step_sizes = torch.tensor([course(make, seed) for seed in range(N_SEEDS)]).mean(0)
    above.plot(losses, style, label=name)
    below.plot(step_sizes, style)
    print(f"{name:<28} mean loss {losses.mean():7.3f}, at the end {losses[-100:].mean():.4f}")
above.set(yscale="log", ylabel="loss")
below.set(yscale="log", ylabel="step size α", xlabel="step")
figure.legend(loc="outside upper center", ncols=2, fontsize=8)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "quadratic_bowl.png", dpi=150)
