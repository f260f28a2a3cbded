"""MetaOptimize in a few words: what it is made of, and the step size of each block."""

from typing import Any

from continual_metaopt.optim.protocol import step_sizes_of
from continual_metaopt.streams.shown import html_table

MOST_BLOCKS = 20  # that are shown


def described(optimizer: Any, html: bool = False) -> str:
    """Describe a ``MetaOptimize`` for people, as text or as HTML.

    Example:
        >>> import torch
        >>> from continual_metaopt import MetaOptimize
        >>> print(described(MetaOptimize(torch.nn.Linear(3, 2).parameters(), lr=1e-3, gamma=0.999)))
        MetaOptimize(base=AdamW, meta=Adam, gamma=0.999, trace='hessian_free', meta_lr=0.01, weight_decay=0.01)
          group0: step size 0.001, 8 parameters
    """
    first = optimizer.param_groups[0]
    heading = (
        f"{type(optimizer).__name__}(base={type(optimizer.base).__name__}, meta={type(optimizer.meta).__name__}, "
        f"gamma={first['gamma']!r}, trace={optimizer.trace!r}, meta_lr={first['meta_lr']:.4g}, "
        f"weight_decay={first['weight_decay']:.4g})"
    )
    blocks = {
        name: (f"{step_size:.3g}", _n_parameters(block))
        for (name, step_size), block in zip(step_sizes_of(optimizer).items(), optimizer.blocks(), strict=True)
    }
    more = f"and {len(blocks) - MOST_BLOCKS:,} more blocks" if len(blocks) > MOST_BLOCKS else ""
    shown = list(blocks.items())[:MOST_BLOCKS]
    if html:
        columns = {
            "block": [name for name, _ in shown],
            "step size": [step_size for _, (step_size, _) in shown],
            "parameters": [f"{n:,}" for _, (_, n) in shown],
        }
        return html_table(columns, heading) + (f"<p>{more}</p>" if more else "")
    lines = [f"{name}: step size {step_size}, {n:,} parameters" for name, (step_size, n) in shown]
    return "\n  ".join([heading, *lines, *([more] if more else [])])


def _n_parameters(block: list[dict[str, Any]]) -> int:
    return sum(param.numel() for group in block for param in group["params"])
