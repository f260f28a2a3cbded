"""From run directories to tables and figures.

This package reads run directories and nothing else; it needs neither torch nor Avalanche. Matplotlib and SciPy are
imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from continual_metaopt.analysis.report import write_report
    from continual_metaopt.analysis.runs import Runs, load_runs
    from continual_metaopt.analysis.tables import comparison_table, format_table

__all__ = ["Runs", "comparison_table", "format_table", "load_runs", "write_report"]

_MODULE_OF = {
    "Runs": "continual_metaopt.analysis.runs",
    "comparison_table": "continual_metaopt.analysis.tables",
    "format_table": "continual_metaopt.analysis.tables",
    "load_runs": "continual_metaopt.analysis.runs",
    "write_report": "continual_metaopt.analysis.report",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if __name__ == "analysis":  # in a checkout, whose folder Python has found first
    from continual_metaopt.streams.short_names import give_short_name

    give_short_name("analysis")
