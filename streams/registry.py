"""A registry: names that users write in configurations, and what they stand for.

An entry is either an object registered by decorator, or the import path of one, so that a list of names can be shown
without importing what they need. Installed packages add entries through Python entry points.
"""

import difflib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
F = TypeVar("F")


class UnknownNameError(ValueError):
    """A name that a registry does not know; the message lists the known ones and suggests the nearest."""


class BrokenNameError(ValueError):
    """What another installed package offers under a name cannot be imported; the message says which and why."""


class Registry(Generic[T]):
    """Maps names to objects of one kind.

    Args:
        kind: what the names stand for, in messages ("stream", "learner", …).
        entry_points: group of Python entry points in which other packages may offer more names.

    Example:
        >>> things = Registry("thing")
        >>> things.add_lazily("half", "fractions:Fraction", "a number")
        >>> things["half"](1, 2)
        Fraction(1, 2)
    """

    def __init__(self, kind: str, entry_points: str | None = None) -> None:
        self.kind = kind
        self.entry_points = entry_points
        self._entries: dict[str, tuple[str | T, str]] = {}

    def register(self, name: str, description: str = "") -> Callable[[F], F]:
        """Enter an object under ``name``, as its decorator.

        Raises:
            ValueError: the name is already taken by something else.
        """

        def enter(target: F) -> F:
            known = self._entries.get(name)
            if known is not None and _origin(known[0]) != _origin(target):
                raise ValueError(f"there is already a {self.kind} named '{name}'; choose another name")
            self._entries[name] = (cast(T, target), description)
            return target

        return enter

    def add_lazily(self, name: str, import_path: str, description: str) -> None:
        """Enter the object at ``import_path`` ("package.module:object"), imported when first asked for."""
        self._entries[name] = (import_path, description)

    def __getitem__(self, name: str) -> T:
        """Return the object registered under ``name``.

        Raises:
            UnknownNameError: no such name.
            BrokenNameError: another package offers it, and it cannot be imported.
        """
        if name not in self._entries:
            point = self._offered_elsewhere().get(name)
            if point is None:
                raise UnknownNameError(unknown_name(self.kind, name, list(self)))
            try:
                return cast(T, point.load())
            except Exception as error:  # whatever that package raises
                raise BrokenNameError(
                    f"the {self.kind} '{name}', which another package offers as {point.value}, cannot be imported "
                    f"({type(error).__name__}: {error}); repair or remove that package"
                ) from error
        target, _ = self._entries[name]
        return cast(T, pkgutil.resolve_name(target)) if isinstance(target, str) else target

    def import_path(self, name: str) -> str:
        """Tell where the object under ``name`` is ("package.module:object"), if it was entered lazily; else empty."""
        target, _ = self._entries.get(name, ("", ""))
        return target if isinstance(target, str) else ""

    def __iter__(self) -> Iterator[str]:
        """List all names, this package's first."""
        yield from self._entries
        yield from (name for name in self._offered_elsewhere() if name not in self._entries)

    @property
    def own(self) -> list[str]:
        """The names that were entered here, without those that other packages offer."""
        return list(self._entries)

    def descriptions(self) -> dict[str, str]:
        """Describe each name in one line."""
        own = {name: description for name, (_, description) in self._entries.items()}
        return {name: f"from {point.value}" for name, point in self._offered_elsewhere().items()} | own

    def _offered_elsewhere(self) -> dict[str, importlib.metadata.EntryPoint]:
        if self.entry_points is None:
            return {}
        return {point.name: point for point in _installed_points(self.entry_points)}


def _installed_points(group: str) -> Iterable[importlib.metadata.EntryPoint]:
    """Find the entry points of a group, without those of packages whose description cannot be read."""
    try:
        return importlib.metadata.entry_points(group=group)
    except Exception:  # a broken package, which is none of our commands' business
        found = []
        for package in importlib.metadata.distributions():
            try:
                found += [point for point in package.entry_points if point.group == group]
            except Exception:
                continue
        return found


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """Say that a name is not known, which ones are, and which is the nearest.

    Example:
        >>> unknown_name("digit", "tree", ["two", "three"])
        "unknown digit 'tree'. Did you mean 'three'? Known: three, two"
    """
    by_lower_case = {entry.lower(): entry for entry in known}
    nearest = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.5)
    suggestion = f" Did you mean '{by_lower_case[nearest[0]]}'?" if nearest else ""
    return f"unknown {kind} '{name}'.{suggestion} Known: {', '.join(sorted(known))}"


def _origin(target: Any) -> Any:
    """Tell what a target has in common with itself after its module was imported again."""
    name = getattr(target, "__qualname__", None)
    return target if name is None else (getattr(target, "__module__", None), name)
