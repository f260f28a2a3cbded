"""Learners and networks whose options are read: without torch, which takes a second to import, since none is called.

Modules that define them are run apart from the imported ones, with a stand-in for torch, of which they compute nothing
while they are imported. What that gives has the signatures and docstrings of the real functions and classes.
"""

import builtins
import functools
import importlib
import importlib.util
from types import SimpleNamespace
from typing import Any

from continual_metaopt.runs.components import REGISTRIES, Kind, factory_of

OUTLINED = ("continual_metaopt.optim.", "continual_metaopt.networks.")
NOT_OUTLINED = "continual_metaopt.optim.packaged."  # where signatures are those of other packages
ABSENT = ("torch", "avalanche")


def outline_of(kind: Kind, name: str) -> Any:
    """Find what has the signature and docstring of ``factory_of(kind, name)``; without torch if it is of this package.

    Example:
        >>> outline_of("network", "mlp").__name__
        'MLP'
    """
    module, _, attribute = REGISTRIES[kind].import_path(name).partition(":")
    if not module.startswith(OUTLINED) or module.startswith(NOT_OUTLINED):
        return factory_of(kind, name)
    return getattr(_outline(module), attribute)


@functools.cache
def _outline(module: str) -> SimpleNamespace:
    loader: Any = importlib.util.find_spec(module).loader  # type: ignore[union-attr]
    names: dict[str, Any] = {
        "__name__": __name__,  # of an imported module, as dataclasses want
        "__file__": loader.path,
        "__builtins__": vars(builtins) | {"__import__": _import},
    }
    exec(loader.get_code(module), names)
    return SimpleNamespace(**names)


def _import(name: str, *context: Any) -> Any:
    if name.partition(".")[0] in ABSENT:
        return _Absent()
    return _outline(name) if name.startswith(OUTLINED) else importlib.__import__(name, *context)


class _Absent:
    """Stands for torch, for all that is in it, and for what that returns."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return ()

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self

    __or__ = __ror__ = __call__
