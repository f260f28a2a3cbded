"""MetaOptimize describes itself in a few lines, and in a notebook by a table."""

import torch
from torch import nn

from continual_metaopt import MetaOptimize, blocks


def test_its_blocks_and_settings() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    optimizer = MetaOptimize(blocks(model, "blockwise"), lr=1e-3, base="sgd", meta="lion", gamma=0.9, weight_decay=0.0)
    heading = "MetaOptimize(base=SGD, meta=Lion, gamma=0.9, trace='hessian_free', meta_lr=0.01, weight_decay=0)"
    assert repr(optimizer) == f"{heading}\n  0: step size 0.001, 8 parameters\n  1: step size 0.001, 6 parameters"
    assert optimizer._repr_html_() == (
        f"<p>{heading.replace(chr(39), '&#x27;')}</p><table>"
        "<tr><th>block</th><th>step size</th><th>parameters</th></tr>"
        "<tr><td>0</td><td>0.001</td><td>8</td></tr><tr><td>1</td><td>0.001</td><td>6</td></tr></table>"
    )


def test_shared_and_many_step_sizes() -> None:
    weights = [nn.Parameter(torch.ones(30)) for _ in range(25)]

    def made(step_sizes: str) -> MetaOptimize:
        return MetaOptimize([{"params": [weight]} for weight in weights], step_sizes=step_sizes)

    assert repr(made("scalar")).endswith("\n  all: step size 0.0003, 750 parameters")
    for optimizer in map(made, ("group", "weight")):
        assert repr(optimizer).count("step size 0.0003, 30 parameters") == 20
        assert repr(optimizer).endswith("\n  and 5 more blocks")
        assert optimizer._repr_html_().endswith("</table><p>and 5 more blocks</p>")
