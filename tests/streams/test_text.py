"""Streams of text: windows, domains, what is held out, and what is refused."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from continual_metaopt.streams import UnknownNameError, make_stream, plan_stream
from continual_metaopt.streams.byte_pairs import byte_pairs
from continual_metaopt.streams.invented_languages import invented_languages
from continual_metaopt.streams.text import TextSamples

LATIN, GREEK = "abcdefghij" * 10 + "z", "αβγδεζηθικ" * 10 + "ω"  # 101 letters each


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "latin.txt").write_text(LATIN, encoding="utf-8")
    (tmp_path / "greek.txt").write_text(GREEK, encoding="utf-8")
    (tmp_path / "README.md").write_text("not a domain")
    (tmp_path / ".hidden.txt").write_text("not a domain")
    return f"text:{tmp_path}"


def windows(samples: TextSamples, context: int) -> list[bytes]:
    """The bytes to predict, cut into windows."""
    content = bytes(samples.labels.tolist())
    return [content[start : start + context] for start in range(0, len(content), context)]


def test_each_byte_is_predicted_from_the_one_before(folder: str) -> None:
    stream = plan_stream("text", source=folder, domains=["latin"], context=10)
    (samples,) = stream.train

    inputs, targets = samples.batch(slice(8, 12))
    assert inputs.tolist() == [[ord("i"), 8], [ord("j"), 9], [ord("a"), 0], [ord("b"), 1]]
    assert bytes(targets.tolist()) == b"jabc"
    assert (inputs.dtype, targets.dtype, len(samples)) == (np.int64, np.int64, 90)
    assert windows(samples, 10) == [b"bcdefghija"] * 9
    assert windows(stream.test[0], 10) == [b"bcdefghijz"], "the end is held out"


def test_sizes_and_what_is_said_of_the_stream(folder: str) -> None:
    info = plan_stream("text", source=folder, context=10, order="given").info

    assert info.boundaries == [0, 180]  # 20 windows of the Greek letters' 202 bytes, two of which are held out
    assert [experience.classes for experience in info.experiences] == [["greek"], ["latin"]]
    sizes = info.for_learner
    assert (sizes.n_outputs, sizes.input_shape, sizes.task) == (256, (2,), "classification")
    assert (sizes.n_samples, sizes.batch_size, sizes.input_type) == (270, 10, "int64")
    assert info.bytes_per_sample == 1


def test_characters(folder: str) -> None:
    stream = plan_stream("text", source=folder, context=10, order="given", unit="character")

    assert stream.info.for_learner.n_outputs == 22
    assert stream.info.boundaries == [0, 90]
    assert stream.info.bytes_per_sample == 1.5, "Greek letters have two bytes"
    assert stream.train[1].labels[:9].tolist() == list(range(1, 10))


def test_byte_pairs() -> None:
    pytest.importorskip("tokenizers")
    options = {"domains": ["dobu", "keti"], "order": "given", "unit": "bpe", "n_symbols": 400}
    stream = plan_stream("text", **options)
    again = plan_stream("text", **options)

    assert stream.info.for_learner.n_outputs == 400
    assert 2.5 < (stream.info.bytes_per_sample or 0) < 4
    assert stream.info.fingerprint == again.info.fingerprint
    assert stream.info.fingerprint != plan_stream("text", **options | {"n_symbols": 401}).info.fingerprint
    assert not set(stream.train[0].labels.tolist()) <= set(range(256))


def test_byte_pairs_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    byte_pairs.cache_clear()

    message = "unit=\"bpe\" needs the package tokenizers; in the clone, pip install -e '.[text]'"
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        plan_stream("text", unit="bpe")


def test_domains_come_in_the_order_that_is_given_or_that_the_seed_decides() -> None:
    def order(**options: Any) -> list[str]:
        info = plan_stream("text", samples_per_experience=64, **options).info
        return [experience.classes[0] for experience in info.experiences]

    assert order(order="given") == list(invented_languages())
    assert order(order="given", domains=["keti", "anari"]) == ["keti", "anari"]
    assert order(seed=0) == ["anari", "keti", "dobu", "shuro"] != order(seed=1)
    cycle = order(seed=3)
    assert order(seed=3, n_cycles=2) == cycle * 2


def test_a_domain_that_comes_again_goes_on_where_it_stopped(folder: str) -> None:
    options = {"source": folder, "domains": ["latin", "greek"], "order": "given", "context": 5, "n_cycles": 2}
    info = plan_stream("text", **options).info
    stream = plan_stream("text", samples_per_experience=90, **options)

    assert info.boundaries == [0, 45, 135, 180]  # 18 and 36 windows, shared by two cycles
    assert [experience.n_seen_before for experience in info.experiences] == [0, 0, 0, 0]
    assert [experience.n_seen_before for experience in stream.info.experiences] == [0, 0, 90, 0]
    assert stream.train[0].labels.tolist() == stream.train[2].labels.tolist(), "after its end it begins again"
    assert np.array_equal(
        np.concatenate([stream.train[1].labels, stream.train[3].labels]),
        np.frombuffer(GREEK.encode(), np.uint8)[1:181],
    )


def test_the_seed_decides_where_a_domain_begins() -> None:
    text = invented_languages()["keti"]
    begun = set()
    for seed in range(5):
        stream = plan_stream("text", domains=["keti"], samples_per_experience=640, seed=seed)
        begun.add(text.index(bytes(stream.train[0].labels.tolist())))
        assert len(stream.train[0]) == 640
    assert len(begun) == 5
    assert all(begin % 32 == 1 and begin + 640 <= 0.9 * len(text) for begin in begun)


def test_whole_windows_move_in_the_stationary_variants(folder: str) -> None:
    options = {"source": folder, "order": "given", "context": 10}
    drifting = plan_stream("text", **options)
    mixed = plan_stream("text", stationary="shuffled", **options)

    def content(stream: Any) -> list[bytes]:
        return [window for samples in stream.train for window in windows(samples, 10)]

    assert sorted(content(mixed)) == sorted(content(drifting))
    assert content(mixed) != content(drifting)
    assert mixed.info.boundaries == drifting.info.boundaries
    assert [sorted(experience.classes) for experience in mixed.info.experiences] == [["greek", "latin"]] * 2
    kept = plan_stream("text", stationary="repeat", **options).info
    assert [experience.classes for experience in kept.experiences] == [["greek"], ["greek"]]
    assert kept.experiences[1].n_seen_before == 180
    frozen = plan_stream("text", stationary="frozen", frozen_after=1, n_cycles=2, **options).info
    assert [experience.classes for experience in frozen.experiences] == [["greek"], *[["latin"]] * 3]


def test_domains_can_be_blended(folder: str) -> None:
    options = {"source": folder, "order": "given", "context": 2}
    blended, sudden = (plan_stream("text", transition_width=width, **options) for width in (60, 0))

    latin = [(np.array([chr(s).isascii() for s in stream.train[0].labels])).mean() for stream in (blended, sudden)]
    assert 0.02 < latin[0] < 0.2, "the next domain begins before the boundary"
    assert latin[1] == 0
    assert blended.info.boundaries == sudden.info.boundaries


def test_held_out_symbols_are_never_learned_from() -> None:
    text = invented_languages()["dobu"]
    stream = plan_stream("text", domains=["dobu"], held_out_share=0.25, test_samples=1000)

    held_out = stream.test[0].labels
    assert len(held_out) == 992  # whole windows
    assert len(stream.train[0]) + 992 <= len(text)
    assert bytes(held_out.tolist()) == text[len(stream.train[0]) + 1 :][:992]


def test_it_is_an_avalanche_benchmark() -> None:
    benchmark = make_stream("text", samples_per_experience=64)
    x, y, _ = benchmark.train_stream[0].dataset[3]

    assert (tuple(x.shape), str(x.dtype), type(y)) == ((2,), "torch.int64", int)
    assert x[1] == 3
    assert len(benchmark.train_stream) == len(benchmark.test_stream) == 4


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"source": "embeded"},
            UnknownNameError,
            "unknown source of text 'embeded'. Did you mean 'embedded'? Known: embedded, text:FOLDER",
        ),
        (
            {"source": "text:nowhere"},
            FileNotFoundError,
            "there is no folder 'nowhere'; after 'text:', write the folder of the texts",
        ),
        ({"unit": "word"}, UnknownNameError, "unknown unit 'word'. Known: bpe, byte, character"),
        ({"order": "name"}, UnknownNameError, "unknown order 'name'. Known: given, random"),
        (
            {"domains": ["ketti"]},
            UnknownNameError,
            "unknown domain 'ketti'. Did you mean 'keti'? Known: anari, dobu, keti, shuro",
        ),
        ({"domains": []}, ValueError, "domains must be different names, not []; n_cycles makes them come again"),
        ({"n_symbols": 100}, ValueError, "n_symbols must be between 256 and 1048576, not 100"),
        ({"context": 0}, ValueError, "context must be at least 1, not 0"),
        ({"held_out_share": 0}, ValueError, "held_out_share must be between 0.01 and 0.9, not 0"),
        ({"samples_per_experience": 10}, ValueError, "samples_per_experience must be at least context, 32, not 10"),
        ({"transition_width": 10**6}, ValueError, "transition_width must be between 0 and 29600, not 1000000"),
        ({"frozen_after": 1}, ValueError, "frozen_after=1 goes with stationary='frozen', not with None"),
        (
            {"context": 4000},
            ValueError,
            "the text 'anari' has 33,197 symbols, too few: with context=4000 and held_out_share=0.1 it needs 40,001; "
            "remove it, or take a smaller context",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        plan_stream("text", **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "'{}' is empty; remove it, or put text into it"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "cannot read '{}': it is a pointer of Git LFS in place of the file; fetch the file with 'git lfs pull'",
        ),
        (
            "fünf".encode("latin-1") * 100,
            "the text 'new' is not UTF-8 (byte 1); convert it, as by iconv -f LATIN1 -t UTF-8, or take unit=\"byte\"",
        ),
    ],
)
def test_files_that_cannot_be_read_are_named(folder: str, content: bytes, message: str) -> None:
    file = Path(folder.removeprefix("text:")) / "new.txt"
    file.write_bytes(content)

    with pytest.raises(ValueError, match=f"^{re.escape(message.format(file))}$"):
        plan_stream("text", source=folder, context=4, unit="character")


def test_a_folder_without_texts_is_named(tmp_path: Path) -> None:
    message = f"'{tmp_path}' has no file whose name ends in .txt; put one there for each domain"

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plan_stream("text", source=f"text:{tmp_path}")


def test_bytes_need_no_utf_8(folder: str) -> None:
    (Path(folder.removeprefix("text:")) / "new.txt").write_bytes("fünf".encode("latin-1") * 100)

    assert len(plan_stream("text", source=folder, context=4).train) == 3


def test_invented_languages_use_letters_of_their_own() -> None:
    letters = {name: set(text.decode().lower()) - set(" .\n") for name, text in invented_languages().items()}

    assert letters["dobu"] == set("bdgvzou")
    assert not letters["dobu"] & letters["keti"]
