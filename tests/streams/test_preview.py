"""What previews are drawn from, checked against streams whose content is known."""

import dataclasses
import itertools

import numpy as np
import pytest

from continual_metaopt.streams import plan_stream, preview
from continual_metaopt.streams.plan import plan_of
from continual_metaopt.streams.preview import (
    N_PORTIONS,
    consecutive,
    course_changes,
    course_means,
    first_samples,
    image_course,
)
from continual_metaopt.streams.stream import ImagePlan, image_stream
from tests.streams.synthetic import coded_arrays

TINY = coded_arrays()  # 12 classes, image i has class i modulo 12


class Invert:
    """Change 0 leaves images as they are, change 1 inverts them."""

    def apply(self, images, change, steps):
        return np.where(change[:, None, None, None] == 1, 255 - images, images)

    def content(self):
        return b"inverted"


def by_hand(index, label, change, lengths, n_outputs=12, **options):
    """A stream of the tiny source with this plan."""

    @image_stream("by_hand v1")
    def stream(images, seed):
        starts = np.cumsum([0, *lengths])
        parts = [slice(a, b) for a, b in itertools.pairwise(starts)]
        index_, label_, change_ = (np.broadcast_to(values, starts[-1]) for values in (index, label, change))
        train = plan_of([(index_[part], label_[part], change_[part]) for part in parts])
        test = plan_of([(np.arange(1), np.arange(1), -1)] * len(parts))
        return ImagePlan(train, test, n_outputs, Invert())

    return stream(TINY, **options)


def test_first_samples_of_experiences_evenly_chosen():
    stream = plan_stream("permuted_inputs", source=TINY, n_experiences=9)
    found = first_samples(stream, n_experiences=3, n_samples=5)
    assert [(row.experience, row.first_step) for row in found] == [(0, 0), (4, 4 * 48), (8, 8 * 48)]
    for row in found:
        inputs, labels = stream.train[row.experience].batch(slice(0, 5))
        np.testing.assert_array_equal(row.inputs, inputs)
        assert row.targets.tolist() == row.classes == labels.tolist()


def test_first_samples_name_the_classes_of_the_source():
    x, y = TINY[0], np.array([10, 20, 30, 40])[TINY[1] % 4]
    found = first_samples(plan_stream("class_split", source=(x, y), classes_per_experience=2, seed=1))
    assert len(found) == 2
    for row in found:
        assert len(row.targets) == 10
        assert set(row.targets.tolist()) == {0, 1}
        named = set(zip(row.targets.tolist(), row.classes, strict=True))
        assert len(named) == 2, "a name for each label"
        assert {name for _, name in named} <= {10, 20, 30, 40}
    assert len({name for row in found for name in row.classes}) == 4


def test_regressions_have_targets_but_no_classes():
    (row,) = first_samples(plan_stream("tracking", n_samples=30), n_samples=4)
    assert (row.inputs.shape, row.targets.shape, row.classes) == ((4, 20), (4, 1), None)


def test_shares_of_classes_and_their_labels():
    # experience 1: classes 3 and 5 in turns as 0 and 1; experience 2: class 5 as 1, then class 0 as 0
    index = [3, 5] * 20 + [5] * 30 + [0] * 10
    label = [0, 1] * 20 + [1] * 30 + [0] * 10
    course = image_course(by_hand(index, label, -1, [40, 40], n_outputs=2))
    assert course.edges.tolist() == [0, 20, 40, 60, 80]
    assert course.classes == [3, 5, 0], "in the order of the experiences"
    assert course.class_share.tolist() == [[0.5, 0.5, 0, 0], [0.5, 0.5, 1, 0.5], [0, 0, 0, 0.5]]
    assert course.labels.tolist() == [[0, 0, -1, -1], [1, 1, 1, 1], [-1, -1, -1, 0]]
    assert course.relabelled
    assert not course.other_labels.any()
    assert (course.changes == -1).all()
    assert not course.difference.any()


def test_a_few_early_samples_do_not_put_a_class_first():
    index = [7] * 38 + [2] * 2 + [2] * 36 + [7] * 4
    assert image_course(by_hand(index, index, -1, [40, 40])).classes == [7, 2]


def test_labels_that_are_the_classes():
    assert not image_course(by_hand(np.arange(40), np.arange(40) % 12, -1, [20, 20])).relabelled


def test_wrong_labels_are_counted():
    label = np.full(80, 7)
    label[[41, 50, 79]] = [1, 2, 3]
    course = image_course(by_hand(7, label, -1, [40, 40]))
    assert course.other_labels.tolist() == [0, 0, 2 / 20, 1 / 20]
    assert not course.relabelled


def test_changes_of_the_input():
    change = np.repeat([-1, 0, 1, 1], 20)
    change[60:64] = 0
    course = image_course(by_hand(6, 6, change, [40, 40]))
    assert course.changes.tolist() == [[-1, 0, 1, 0], [-1, 0, 1, 16 / 20], [-1, 0, 1, 1]]
    inverted = np.abs(255 - 2 * TINY[0][6].astype(float)).mean() / 255
    np.testing.assert_allclose(course.difference, [0, 0, inverted, inverted * 12 / 16], rtol=1e-6)


@pytest.mark.parametrize(("stationary", "expected"), [(None, [0, 0, 0]), ("repeat", [0, 1, 1])])
def test_samples_seen_before(stationary, expected):
    stream = plan_stream("permuted_inputs", source=TINY, n_experiences=3, stationary=stationary)
    course = image_course(stream)
    assert course.seen_before.tolist() == np.repeat(expected, (len(course.edges) - 1) // 3).tolist()


def test_very_many_experiences_are_put_together():
    n = 2 * N_PORTIONS
    course = image_course(by_hand(np.repeat(np.arange(n) % 12, 3), np.repeat(np.arange(n) % 12, 3), -1, [3] * n))
    assert course.edges.tolist() == list(range(0, 3 * n + 1, 6))
    np.testing.assert_allclose(course.class_share.sum(axis=0), 1)
    assert course.class_share[:, 0].tolist() == [0.5, 0.5] + [0] * 10


def regression(course, n=100):
    info = plan_stream("tracking", n_samples=n, samples_per_experience=30)
    return dataclasses.replace(
        info, course={name: lambda a, b, values=values: values[a:b] for name, values in course.items()}
    )


@pytest.mark.parametrize("chunk", [7, 10, 1000])
def test_changes_behind_a_regression(chunk, monkeypatch):
    monkeypatch.setattr(preview, "CHUNK", chunk)
    parts = np.zeros((100, 2))
    parts[10:, 0], parts[70:, 1] = 1, 5
    level = np.repeat([1, 2], 50)
    assert course_changes(regression({"parts": parts, "level": level})).tolist() == [10, 50, 70]
    assert course_changes(regression({"level": np.ones(100)})).tolist() == []
    assert course_changes(regression({})).tolist() == [30, 60, 90], "the starts of experiences"


def test_means_of_portions_by_hand():
    stream = regression({"level": np.arange(5), "parts": np.arange(10).reshape(5, 2)}, n=5)
    edges, means = course_means(stream, 5, 2)
    assert edges.tolist() == [0, 2, 5]
    assert means["level"].tolist() == [0.5, 3]
    assert means["parts"].tolist() == [[1, 2], [6, 7]]
    assert course_means(stream, 3, 100)[0].tolist() == [0, 1, 2, 3]


def test_consecutive_samples_reach_over_experiences():
    stream = regression({})
    inputs, targets = consecutive(stream, 25, 65)
    whole = [np.concatenate(parts) for parts in zip(*(s.batch(slice(0, 30)) for s in stream.train), strict=True)]
    np.testing.assert_array_equal(inputs, whole[0][25:65])
    np.testing.assert_array_equal(targets, whole[1][25:65])


def test_tracking_tells_its_signs():
    stream = plan_stream("tracking", n_samples=90, n_inputs=4, n_relevant=2, flip_every=30)
    assert course_changes(stream).tolist() == [30, 60]
    (read,) = stream.course.values()
    x, y = stream.train[0].batch(slice(20, 90))
    np.testing.assert_allclose(y[:, 0], (x[:, :2] * read(20, 90)).sum(axis=1), rtol=1e-5, atol=1e-6)
