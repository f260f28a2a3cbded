"""What the page about the optimizer says of its defaults, and of those of the strategy."""

import inspect
import re

from torch import nn

from continual_metaopt import MetaOptimize, MetaOptimizeStrategy, blocks
from tests.test_claims import RECORDS, cells, numbers, page, value


def test_the_page_names_what_makes_one_optimizer_of_the_other() -> None:
    model = nn.Linear(3, 2)
    (options,) = re.findall(
        r'`MetaOptimize\(blocks\(model, "blockwise"\), gamma="(\w+)", trace="(\w+)"\)`', page("optimizer.md")
    )
    gamma, trace = options
    optimizer = MetaOptimize(blocks(model, "blockwise"), gamma=gamma, trace=trace)
    ready_made = MetaOptimizeStrategy(model=model).optimizer
    assert repr(optimizer) == repr(ready_made)
    assert optimizer.defaults == ready_made.defaults
    plain, strategy = (inspect.signature(one).parameters for one in (MetaOptimize, MetaOptimizeStrategy))
    common = (set(plain) & set(strategy)) - {"params"}
    assert {name for name in common if plain[name].default != strategy[name].default} == {
        "gamma",
        "step_sizes",
        "trace",
    }


def test_how_much_better_the_strategys_defaults_are() -> None:
    gains = []
    for study, start in (
        ("permuted_digits", ", α₀ = 1e-3"),
        ("permuted_digits", ", α₀ = 1e-5"),
        *((f"class_split_{n}", "") for n in (2, 5, 10, 20)),
        ("shuffled", ""),
    ):
        rows = cells(RECORDS / "horizons" / f"{study}.md")
        gains.append(round(value(rows[f"Dutch, auto{start}"][1]) - value(rows[f"γ = 0.999{start}"][1]), 1))
    found = r"by ([\d.]+) points on permuted digits from α₀ = 1e-3 and from 1e-5, by ([\d.]+), ([\d.]+), ([\d.]+) and"
    found += r" ([\d.]+) on Tiny ImageNet in experiences of 2, 5, 10 and 20 classes, and by ([\d.]+) where"
    both, *others = numbers("optimizer.md", found)
    assert gains == [both, both, *others]
