"""Streams of the user's own arrays, in memory and in files."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from continual_metaopt.streams import make_stream, plan_stream
from continual_metaopt.streams.array_files import read_arrays, save_arrays
from continual_metaopt.streams.sources import load_source
from tests.streams.synthetic import coded_arrays

X = np.arange(24.0).reshape(12, 2)
Y = np.array([3, 9] * 4 + [9] * 4)
HELD_OUT = np.array([[0.5, 0.5], [1.5, 1.5]]), np.array([3, 9])


def presented(stream: Any, number: int) -> tuple[list[Any], list[Any]]:
    x, y = stream.train[number].batch(slice(0, 100))
    return x.tolist(), y.tolist()


def test_samples_come_as_they_are_and_classes_are_numbered() -> None:
    stream = plan_stream("array_stream", source=(X, Y, *HELD_OUT), boundaries=(8,))
    assert presented(stream, 0) == (X[:8].tolist(), [0, 1] * 4)
    assert presented(stream, 1) == (X[8:].tolist(), [1] * 4)
    assert [experience.classes for experience in stream.info.experiences] == [[3, 9], [9]]
    assert stream.info.boundaries == [0, 8]
    sizes = stream.info.for_learner
    assert (sizes.n_outputs, sizes.input_shape, sizes.task, sizes.n_samples) == (2, (2,), "classification", 12)
    # each experience is tested on the classes that it has
    assert [samples.labels.tolist() for samples in stream.test] == [[0, 1], [1]]


def test_held_out_samples_of_each_experience_can_be_given() -> None:
    stream = plan_stream("array_stream", source=(X, Y, *HELD_OUT), boundaries=(8,), test_boundaries=(1,))
    assert [samples.labels.tolist() for samples in stream.test] == [[0], [1]]
    assert [len(samples) for samples in plan_stream("array_stream", source=(X, Y), boundaries=(8,)).test] == [0, 0]


@pytest.mark.parametrize("targets", [Y / 3, np.stack([Y, -Y], axis=1) / 3])
def test_floats_are_the_targets_of_a_regression(targets: Any) -> None:
    stream = plan_stream("array_stream", source=(X, targets))
    y = stream.train[0].batch(slice(0, 12))[1]
    assert y.dtype == np.float32
    assert np.allclose(y, targets.reshape(12, -1))
    assert (stream.info.for_learner.task, stream.info.for_learner.n_outputs) == ("regression", y.shape[1])
    assert plan_stream("array_stream", source=(X, Y), task="regression").info.for_learner.n_outputs == 1


def test_what_the_seed_decides() -> None:
    def orders(**options: Any) -> list[list[Any]]:
        stream = plan_stream("array_stream", source=(X, Y), boundaries=(6,), **options)
        return [[row[0] for row in presented(stream, k)[0]] for k in range(2)]

    given = orders()
    assert given == [X[:6, 0].tolist(), X[6:, 0].tolist()]
    assert orders(seed=1) == given
    within = orders(shuffle=True)
    assert [sorted(part) for part in within] == given != within != orders(shuffle=True, seed=1)
    everywhere = orders(stationary="shuffled")
    assert sorted([*everywhere[0], *everywhere[1]]) == X[:, 0].tolist()
    assert set(everywhere[0]) != set(given[0])


def test_a_file_is_the_same_stream_as_its_arrays(tmp_path: Path) -> None:
    source = save_arrays(tmp_path / "new", X, Y)
    assert save_arrays(tmp_path / "new", X, Y) == source != save_arrays(tmp_path / "new", X + 1, Y)
    first, second = (plan_stream("array_stream", source=one, boundaries=(8,)).info for one in (source, (X, Y)))
    assert first.fingerprint == second.fingerprint
    assert (first.source, second.source) == (source, "arrays")
    assert first.fingerprint != plan_stream("array_stream", source=source, boundaries=(7,)).info.fingerprint


def test_a_file_of_images_is_a_source_like_any_other(tmp_path: Path) -> None:
    arrays = coded_arrays()
    source = save_arrays(tmp_path, *arrays)
    assert load_source(source).content_hash == load_source(arrays).content_hash
    options = {"classes_per_experience": 4}
    streams = [plan_stream("class_split", source=one, **options).info.fingerprint for one in (source, arrays)]
    assert streams[0] == streams[1]


def test_as_an_avalanche_benchmark() -> None:
    benchmark = make_stream("array_stream", source=(X, Y, *HELD_OUT), boundaries=(8,))
    assert [list(experience.dataset.targets) for experience in benchmark.train_stream] == [[0, 1] * 4, [1] * 4]
    x, y, task = benchmark.train_stream[1].dataset[0]
    assert (x.tolist(), y, task) == ([16.0, 17.0], 1, 0)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ((X,), {}, "a source of arrays is (x, y) or (x, y, x_test, y_test), not 1 things"),
        ((X, Y[:5]), {}, "x has 12 samples, but y has 5 targets"),
        ((X[:, 0], Y), {}, "x must hold numbers of shape [N, …], not float64 of shape (12,)"),
        ((X, Y.astype(str)), {}, "classes must be integers of shape [N], not <U21 of shape (12,)"),
        ((X, Y / 2), {"task": "classification"}, "classes must be integers of shape [N], not float64 of shape (12,)"),
        ((X * np.nan, Y), {}, "x or y holds NaN or infinite numbers; leave these samples out or fill them in"),
        ((X, Y, X[:, :1], Y), {}, "x_test has the shape (12, 1) and y_test (12,), which do not fit x and y"),
        ((X, Y, X, Y + 1), {}, "y_test has classes that y lacks: [4, 10]"),
        ((X, Y), {"boundaries": (12,)}, "boundaries must be rising numbers between 1 and 11, not [12]"),
        ((X, Y), {"boundaries": (5, 5)}, "boundaries must be rising numbers between 1 and 11, not [5, 5]"),
        ((X, Y, X, Y), {"test_boundaries": (3,)}, "test_boundaries must be as many as boundaries, 0, not 1"),
        ((X, Y), {"stationary": "frozen"}, "stationary must be None or \"shuffled\" for arrays, not 'frozen'"),
        ("cifar100", {}, "the source of array_stream is arrays, npz:FILE or digits, not 'cifar100'"),
    ],
)
def test_what_does_not_fit_is_refused(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plan_stream("array_stream", source=source, **options)


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_arrays(f"npz:{tmp_path}/none.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(ValueError, match=r"it must be an npz file with the arrays x and y"):
        read_arrays(f"npz:{tmp_path}/text.npz")
    np.savez(tmp_path / "other.npz", inputs=X)
    with pytest.raises(ValueError, match=r"it must be an npz file with the arrays x and y"):
        read_arrays(f"npz:{tmp_path}/other.npz")
    with pytest.raises(ValueError, match=r"^y must be an array of numbers, not of <U1$"):
        save_arrays(tmp_path, X, ["a"] * 12)
    with pytest.raises(ValueError, match=r"not 3 things$"):
        save_arrays(tmp_path, X, Y, X)
