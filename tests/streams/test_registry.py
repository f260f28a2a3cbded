import importlib.metadata
import sys
from fractions import Fraction

import pytest

from continual_metaopt.streams import STREAMS, UnknownNameError, make_stream, plan_stream, register_stream
from continual_metaopt.streams.registry import BrokenNameError, Registry, unknown_name
from continual_metaopt.streams.stream import Stream

GROUP = "tests.things"
KNOWN = ", ".join(sorted(name for name, line in STREAMS.descriptions().items() if not line.startswith("from ")))


@pytest.fixture
def no_entry_points(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])


@pytest.fixture
def streams_restored(monkeypatch):
    """Whatever a test registers is gone afterwards."""
    monkeypatch.setattr(STREAMS, "_entries", dict(STREAMS._entries))


def offer(monkeypatch, **points):
    """Pretend that installed packages offer these names."""
    found = [importlib.metadata.EntryPoint(name, value, GROUP) for name, value in points.items()]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found if group == GROUP else [])


def test_register_returns_the_target_and_enters_it():
    registry = Registry("thing")

    @registry.register("one", "the first thing")
    def make_one():
        return 1

    assert make_one() == 1
    assert registry["one"] is make_one
    assert list(registry) == ["one"]
    assert registry.descriptions() == {"one": "the first thing"}


def make(module):
    """A new function ``make`` that claims to be of that module."""

    def make():
        return module

    make.__module__, make.__qualname__ = module, "make"
    return make


@pytest.mark.parametrize(
    "second",
    [make("package_b"), Fraction, "something else"],
    ids=["same name, other module", "other object", "no function"],
)
def test_a_name_is_given_once(second):
    registry = Registry("thing")
    registry.register("one")(make("package_a"))
    with pytest.raises(ValueError, match="there is already a thing named 'one'; choose another name"):
        registry.register("one")(second)
    assert registry["one"]() == "package_a"


def test_the_same_object_may_be_registered_again_as_when_its_module_is_reloaded():
    registry = Registry("thing")
    first, again = make("package_a"), make("package_a")
    registry.register("one")(first)
    registry.register("one")(again)
    assert registry["one"] is again


def test_a_lazy_name_is_taken_too():
    registry = Registry("thing")
    registry.add_lazily("one", "fractions:Fraction", "")
    with pytest.raises(ValueError, match="there is already a thing named 'one'"):
        registry.register("one")(make("package_a"))


def test_lazy_entries_are_imported_when_first_asked_for(tmp_path, monkeypatch):
    (tmp_path / "module_imported_late.py").write_text("thing = object()\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("thing")
    registry.add_lazily("one", "module_imported_late:thing", "late")
    assert list(registry) == ["one"]
    assert registry.descriptions() == {"one": "late"}
    assert "module_imported_late" not in sys.modules
    try:
        thing = registry["one"]
        assert thing is sys.modules["module_imported_late"].thing
    finally:
        sys.modules.pop("module_imported_late", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clas_split", "unknown stream 'clas_split'. Did you mean 'class_split'? Known: "),
        ("Permuted-Inputs", "unknown stream 'Permuted-Inputs'. Did you mean 'permuted_inputs'? Known: "),
        ("zzz", "unknown stream 'zzz'. Known: "),
    ],
)
def test_unknown_streams(name, message, no_entry_points):
    with pytest.raises(UnknownNameError) as error:
        make_stream(name)
    assert str(error.value) == message + ", ".join(sorted(STREAMS))
    assert isinstance(error.value, ValueError)


def test_known_names_are_sorted_in_messages():
    assert unknown_name("thing", "q", ["b", "a"]) == "unknown thing 'q'. Known: a, b"


def test_entry_points_of_other_packages(monkeypatch):
    offer(monkeypatch, fraction="fractions:Fraction", own="fractions:Fraction")
    registry = Registry("thing", entry_points=GROUP)
    own = registry.register("own", "ours")(make("package_a"))
    assert registry["fraction"] is Fraction
    assert registry["own"] is own, "a name of this package must win"
    assert list(registry) == ["own", "fraction"]
    assert registry.descriptions() == {"own": "ours", "fraction": "from fractions:Fraction"}
    with pytest.raises(UnknownNameError, match=r"Did you mean 'fraction'.* Known: fraction, own$"):
        registry["fractoin"]


def test_entry_points_are_not_loaded_to_list_them(monkeypatch):
    offer(monkeypatch, broken="no_such_module_anywhere:thing")
    registry = Registry("thing", entry_points=GROUP)
    assert registry.descriptions() == {"broken": "from no_such_module_anywhere:thing"}
    with pytest.raises(BrokenNameError):
        registry["broken"]


def test_a_registry_without_entry_points_looks_for_none(monkeypatch):
    offer(monkeypatch, fraction="fractions:Fraction")
    assert list(Registry("thing")) == []


def test_streams_of_other_packages_are_found_in_their_group(monkeypatch):
    asked = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: asked.append(group) or [])
    assert set(STREAMS) >= {"class_split", "permuted_inputs", "tracking"}
    assert set(asked) == {"continual_metaopt.streams"}


def test_a_registered_stream_is_made_with_its_options(streams_restored):
    @register_stream("tiny", "for this test")
    def tiny(seed: int = 0) -> Stream:
        return plan_stream("class_split", classes_per_experience=5, seed=seed)

    made = [plan_stream("tiny", seed=3).info, make_stream("tiny", seed=3).info]
    assert made == [plan_stream("class_split", classes_per_experience=5, seed=3).info] * 2
    assert STREAMS.descriptions()["tiny"] == "for this test"
    with pytest.raises(TypeError, match="sede"):
        make_stream("tiny", sede=3)


def test_what_a_broken_package_offers_is_named_when_it_is_asked_for(monkeypatch):
    offer(monkeypatch, broken="no_such_package.things:make", absent="json:nothing")
    registry = Registry("thing", entry_points=GROUP)
    registry.register("own")(make("a"))
    assert list(registry) == ["own", "broken", "absent"]
    assert registry["own"]() == "a"
    with pytest.raises(BrokenNameError) as error:
        registry["broken"]
    assert str(error.value) == (
        "the thing 'broken', which another package offers as no_such_package.things:make, cannot be imported "
        "(ModuleNotFoundError: No module named 'no_such_package'); repair or remove that package"
    )
    with pytest.raises(BrokenNameError, match=r"\(AttributeError: "):
        registry["absent"]


@pytest.mark.parametrize("content", [b"[tests.things]\nno equals sign\n", b"\xff\xfe"], ids=["no pair", "no text"])
def test_packages_whose_description_is_broken_are_passed_over(monkeypatch, tmp_path, content):
    for name, points in (("broken", content), ("whole", b"[tests.things]\nhalf = fractions:Fraction\n")):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_bytes(points)
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("thing", entry_points=GROUP)
    assert registry.descriptions() == {"half": "from fractions:Fraction"}
    assert registry["half"] is Fraction
