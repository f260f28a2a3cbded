"""Recurring experiences. On coded images a sample's number tells its class."""

import pytest

from continual_metaopt.streams import plan_stream
from tests.streams.synthetic import N_CLASSES, coded_arrays, numbers_and_labels

SOURCE = coded_arrays()  # 12 classes, four training images and one test image each


def recurring(**options):
    return plan_stream("recurring", source=SOURCE, **{"classes_per_experience": 3, **options})


def numbers(samples):
    return numbers_and_labels(samples)[0].tolist()


def tasks(split):
    """The classes of each experience."""
    return [frozenset(number % N_CLASSES for number in numbers(samples)) for samples in split]


def test_the_same_tasks_come_again_in_each_cycle():
    stream = recurring(n_cycles=3)
    found = tasks(stream.train)
    assert found == found[:4] * 3
    assert tasks(stream.test) == found
    assert len(set(found)) == 4
    assert frozenset().union(*found[:4]) == frozenset(range(N_CLASSES))
    assert [e.n_seen_before for e in stream.info.experiences] == [0] * 4 + [12] * 8


def test_the_tasks_of_the_first_cycle_are_those_of_a_class_split():
    split = plan_stream("class_split", source=SOURCE, classes_per_experience=3, seed=3)
    again = recurring(n_cycles=2, seed=3)
    first, others = again.train[:4], split.train
    assert [numbers_and_labels(one)[0].tolist() for one in first] == [numbers(other) for other in others]


def test_samples_come_in_a_new_order_each_time():
    stream = recurring(n_cycles=5)
    for task in range(4):
        visits = [tuple(numbers(samples)) for samples in stream.train[task::4]]
        assert len(set(visits)) == 5
        assert len({tuple(sorted(visit)) for visit in visits}) == 1


@pytest.mark.parametrize("n", [5, 12, 30])
def test_a_task_goes_on_through_its_images(n):
    stream = recurring(n_cycles=6, samples_per_experience=n)
    for task in range(4):
        drawn = [number for samples in stream.train[task::4] for number in numbers(samples)]
        assert len(drawn) == 6 * n
        passes = [drawn[start : start + 12] for start in range(0, len(drawn), 12)]
        assert all(len(set(one)) == len(one) for one in passes)
        assert len(set(drawn)) == 12


def test_a_new_order_of_tasks_in_each_cycle():
    found = tasks(recurring(n_cycles=20, new_order=True).train)
    cycles = [tuple(found[start : start + 4]) for start in range(0, 80, 4)]
    assert all(set(cycle) == set(cycles[0]) for cycle in cycles), "each task once in each cycle"
    assert len(set(cycles)) > 8, "of 24 orders"


def test_the_order_of_tasks_does_not_touch_their_samples():
    same, new = (recurring(n_cycles=4, new_order=new_order) for new_order in (False, True))

    def by_task(split):
        visits = {}
        for task, samples in zip(tasks(split), split, strict=True):
            visits.setdefault(task, []).append(numbers(samples))
        return visits

    assert by_task(same.train) == by_task(new.train)


@pytest.mark.parametrize(
    ("labels", "n_outputs"), [("within", 3), ("global", 12), ("appearance", 9)], ids=lambda value: str(value)
)
def test_labels(labels, n_outputs):
    stream = recurring(n_tasks=3, n_cycles=4, new_order=True, labels=labels)
    assert stream.info.for_learner.n_outputs == n_outputs
    label_of = {}
    for split in (stream.train, stream.test):
        for samples in split:
            for number, label in zip(*(part.tolist() for part in numbers_and_labels(samples)), strict=True):
                assert label_of.setdefault(number % N_CLASSES, label) == label, "a class has one label in all cycles"
    assert len(label_of) == 9
    expected = {"within": [0, 1, 2] * 3, "global": sorted(label_of), "appearance": range(9)}[labels]
    assert sorted(label_of.values()) == sorted(expected)


def test_fewer_tasks_are_the_first_ones():
    all_tasks, some = recurring(n_cycles=2), recurring(n_cycles=2, n_tasks=2)
    assert tasks(some.train) == tasks(all_tasks.train)[:2] * 2
    assert [numbers(samples) for samples in some.train[:2]] == [numbers(samples) for samples in all_tasks.train[:2]]
