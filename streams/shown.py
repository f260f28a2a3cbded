"""Tables in HTML, for what shows itself in a notebook."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


def html_table(columns: Mapping[str, Sequence[Any]], caption: str = "") -> str:
    """Write a table whose columns have headings, with a line of text above it.

    Example:
        >>> html_table({"block": ["all"], "step size": [0.1]}, "One block")
        '<p>One block</p><table><tr><th>block</th><th>step size</th></tr><tr><td>all</td><td>0.1</td></tr></table>'
    """
    rows = [_row("th", columns), *(_row("td", values) for values in zip(*columns.values(), strict=True))]
    above = f"<p>{escape(caption)}</p>" if caption else ""
    return f"{above}<table>{''.join(rows)}</table>"


def _row(kind: str, values: Any) -> str:
    return "<tr>" + "".join(f"<{kind}>{escape(str(value))}</{kind}>" for value in values) + "</tr>"
