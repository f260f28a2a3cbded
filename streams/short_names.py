"""``streams`` and ``analysis`` as short names of the packages below ``continual_metaopt``.

A script may have its own ``analysis.py`` beside it, which Python then finds first. So nothing in this project uses the
short names. Where nobody else has them, they give the same modules, loaded once.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import CodeType, ModuleType
from typing import Any

HOME = "continual_metaopt"


def give_short_name(name: str) -> None:
    """Let a top-level name, "streams" or "analysis", stand for the package of this name below our own."""
    sys.meta_path.insert(0, _ShortName(name))
    sys.modules[name] = import_module(f"{HOME}.{name}")


class _ShortName(MetaPathFinder, Loader):
    """Finds the modules of a package by its short name."""

    def __init__(self, name: str) -> None:
        self._prefix = f"{name}."

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if not fullname.startswith(self._prefix) or find_spec(f"{HOME}.{fullname}") is None:
            return None
        return spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Put the true module in the place of the new, empty one."""
        sys.modules[module.__name__] = import_module(f"{HOME}.{module.__name__}")

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the module's code, for ``python -m``."""
        spec = find_spec(f"{HOME}.{fullname}")
        return spec.loader.get_code(spec.name) if spec and spec.loader else None  # type: ignore[attr-defined]
