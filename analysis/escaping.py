"""Text that others may have written (labels, reasons, names of folders), escaped for each kind of output.

HTML is escaped by the templates of `analysis.html.html_report`, and names of files by `analysis.files.file_names`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# control characters, what reverses or hides text, and halves of characters; but for line breaks and tabs
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_BREAKS = re.compile(r"[\t\n]+")
_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def for_terminal(text: object) -> str:
    """Text that cannot do anything to a terminal: escapes for control characters but line breaks and tabs."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), _joined(str(text)))


def one_line(text: object) -> str:
    """Text in one line, for a cell or a comment: spaces for line breaks and tabs; else as `for_terminal`."""
    return for_terminal(_BREAKS.sub(" ", _joined(str(text))))


def csv_text(table: pd.DataFrame, **options: Any) -> str:
    """A table as CSV that spreadsheets read as text and numbers, never as formulas; options of `to_csv`."""
    safe = table.rename(columns=no_formula)
    for place, kind in enumerate(safe.dtypes):
        if kind.kind not in "biufM":  # neither numbers nor times
            safe.isetitem(place, safe.iloc[:, place].astype(object).map(no_formula).to_numpy())
    return str(safe.to_csv(index=False, lineterminator="\n", **options))


def no_formula(value: Any) -> Any:
    """A cell that is no formula: text in one line, with an apostrophe before what begins like one."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if _FORMULA.match(value) or _FORMULA.match(text.lstrip()) else text


def _joined(text: str) -> str:
    """The text with one sign for all line breaks, of whatever system."""
    return text.replace("\r\n", "\n")
