"""The page about learners is what the registry says; ``python -m tests.test_learners_page`` renews it."""

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_type_hints

from continual_metaopt.optim.registry import LEARNERS, NOTHING_TO_TUNE, is_range, learner_factory, search_space

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "learners.md"
TABLE = re.compile(r"(?<=<!-- learners: begin -->\n).*?(?=<!-- learners: end -->)", flags=re.DOTALL)
# base updates are textbook rules, and the controls this package's own
WITHOUT_A_SOURCE = ["fixed", "fixed_per_block", "replayed_step_sizes", "reinitialised_told"]


def module_of_the_rule(name: str) -> Any:
    """Where a learner's rule is: the module of its factory, or of the optimizer that this makes."""
    factory = learner_factory(name)
    module = importlib.import_module(factory.__module__)
    if module.__name__ != "continual_metaopt.optim.learners":
        return module
    return sys.modules[get_type_hints(factory)["return"].__module__]


def source(name: str) -> str:
    """The first sentence in the docstring of a learner's module that names a year or an arXiv number."""
    if name in WITHOUT_A_SOURCE:
        return ""
    _, *paragraphs = inspect.cleandoc(module_of_the_rule(name).__doc__).split("\n\n")
    sentences = [s for p in paragraphs for s in re.split(r"(?<=[\w)]\.)(?<!al\.)\s+(?=[A-Z])", p)]
    found = next(s for s in sentences if re.search(r"\b(19|20)\d\d\b|arXiv", s))
    return " ".join(found.removeprefix("Source: ").split()).removesuffix(".").replace("``", "`")


def space(name: str) -> str:
    if name in NOTHING_TO_TUNE:
        return f"nothing: {NOTHING_TO_TUNE[name]}"
    cells = []
    for option, values in search_space(name).items():
        between = " – " if is_range(values) else ", "
        numbers = values[:2] if is_range(values) else values
        cells.append(f"`{option}` {between.join(f'{number:g}'.replace('e-0', 'e-') for number in numbers)}")
    return "; ".join(cells)


def table() -> str:
    rows = ["| learner | | tuned over | source |", "|---|---|---|---|"]
    descriptions = LEARNERS.descriptions()
    rows += [f"| `{name}` | {descriptions[name]} | {space(name)} | {source(name)} |" for name in LEARNERS.own]
    return "\n".join(rows) + "\n"


def test_the_table_is_what_the_registry_says() -> None:
    (found,) = TABLE.findall(PAGE.read_text(encoding="utf-8"))
    assert found == table(), "renew the table with: python -m tests.test_learners_page"


def test_the_readme_names_each_learner_under_one_kind() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## Learners\n\n")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", section)
    assert sorted(named) == sorted(LEARNERS.own)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(), text), encoding="utf-8")
