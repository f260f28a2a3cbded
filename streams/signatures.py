"""Options that are defined once, and shown wherever they are passed on: docstrings composed of others."""

import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

WIDTH = 116  # of a docstring's lines without the indentation of its function


def described_options(function: Any) -> dict[str, str]:
    """Read what the ``Args`` section of a function's or class's docstring says about each option.

    Example:
        >>> described_options(with_options)["doc"]
        "a docstring in Google's style, as ``inspect.getdoc`` gives it."
    """
    return argument_descriptions(inspect.getdoc(function) or "")


def argument_descriptions(docstring: str) -> dict[str, str]:
    r"""Read what a Google-style docstring, not indented, says about each argument; nothing if it has another style.

    Example:
        >>> argument_descriptions("Args:\n    lr: step size, 0.001 if not given.")
        {'lr': 'step size, 0.001 if not given.'}
    """
    import docstring_parser

    style = docstring_parser.DocstringStyle.GOOGLE
    try:
        parsed = docstring_parser.parse(f"Options.\n\n{docstring}", style=style)  # it wants something before a section
    except docstring_parser.ParseError:
        return {}
    entries = sorted(parsed.params, key=lambda entry: entry.args[0] == "param")  # attributes first: arguments prevail
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in entries}


def with_options(doc: str, options: Mapping[str, str]) -> str:
    """Write the ``Args`` section of a docstring anew, in the place of the one that it has.

    Args:
        doc: a docstring in Google's style, as ``inspect.getdoc`` gives it.
        options: descriptions by name, in their order.

    Example:
        >>> print(with_options("Fit a line.", {"slope": "rise per step."}))
        Fit a line.
        <BLANKLINE>
        Args:
            slope: rise per step.
    """
    before, _, after = doc.partition("\nArgs:\n")
    lines = [
        textwrap.fill(
            f"{name}: {words}", WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False
        )
        for name, words in options.items()
    ]
    _, separator, rest = after.partition("\n\n")
    return "\n".join([before.rstrip(), "", "Args:", *lines]) + separator + rest
