"""The page about learners is what the registry says; ``python -m tests.test_learners_page`` renews it."""

import re
from pathlib import Path
from typing import get_args

from continual_metaopt.optim.registry import SPECS, Family, SearchSpace, is_range

PAGE = Path(__file__).parents[1] / "docs" / "learners.md"
KINDS = get_args(Family)
TABLE = re.compile(r"(?<=<!-- learners: begin -->\n).*?(?=<!-- learners: end -->)", flags=re.DOTALL)


def space(values_of: SearchSpace | str) -> str:
    if isinstance(values_of, str):
        return f"nothing: {values_of}"
    cells = []
    for option, values in values_of.items():
        between = " – " if is_range(values) else ", "
        numbers = values[:2] if is_range(values) else values
        cells.append(f"`{option}` {between.join(f'{number:g}'.replace('e-0', 'e-') for number in numbers)}")
    return "; ".join(cells)


def table() -> str:
    rows = ["| learner | kind | | tuned over | source |", "|---|---|---|---|---|"]
    for row in sorted(SPECS.values(), key=lambda row: KINDS.index(row.family)):
        rows.append(f"| `{row.name}` | {row.family} | {row.description} | {space(row.space)} | {row.paper} |")
    return "\n".join(rows) + "\n"


def test_the_table_is_what_the_registry_says() -> None:
    (found,) = TABLE.findall(PAGE.read_text(encoding="utf-8"))
    assert found == table(), "renew the table with: python -m tests.test_learners_page"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(), text), encoding="utf-8")
