"""The stationary variants, on both streams and on plans."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from streams import make_stream
from streams.plan import plan_of
from streams.stationary import make_stationary
from tests.streams.synthetic import coded_arrays, stored_bytes

SOURCE = coded_arrays()  # 12 classes, 48 training images and 12 test images
STREAMS = {
    "class_split": {"classes_per_experience": 3},
    "class_split, global": {"classes_per_experience": 3, "labels": "global"},
    "class_split, part": {"classes_per_experience": 3, "samples_per_experience": 7},
    "permuted_inputs": {"n_experiences": 4},
    "permuted_inputs, part": {"n_experiences": 4, "samples_per_experience": 7},
}


def made(name, **options):
    return make_stream(name.split(",")[0], source=SOURCE, **{**STREAMS[name], **options})


def met(experience):
    """(bytes of the image, label) of each sample, in order."""
    return [(tuple(stored_bytes(image).ravel().tolist()), label) for image, label, _ in experience.dataset]


def all_met(stream):
    return [sample for experience in stream for sample in met(experience)]


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_shuffled_presents_the_same_samples_in_one_other_order(name, seed):
    changing, shuffled = made(name, seed=seed), made(name, seed=seed, stationary="shuffled")
    for stream in ("train_stream", "test_stream"):
        before, after = all_met(getattr(changing, stream)), all_met(getattr(shuffled, stream))
        assert Counter(before) == Counter(after)
        assert before != after
        lengths = [[len(e.dataset) for e in getattr(b, stream)] for b in (changing, shuffled)]
        assert lengths[0] == lengths[1]
    assert shuffled.info.boundaries == changing.info.boundaries
    assert [e.n_seen_before for e in shuffled.info.experiences] == [0, 0, 0, 0]
    assert shuffled.info.for_learner == changing.info.for_learner
    assert (changing.info.stationary, shuffled.info.stationary) == (None, "shuffled")


def test_shuffled_mixes_the_experiences():
    """Each quarter of the shuffled stream has classes of several experiences, and says so."""
    changing, shuffled = made("class_split, global"), made("class_split, global", stationary="shuffled")
    groups = [set(e.classes) for e in changing.info.experiences]
    for experience, info in zip(shuffled.train_stream, shuffled.info.experiences, strict=True):
        classes = {label for _, label in met(experience)}
        assert info.classes == sorted(classes)
        assert sum(bool(group & classes) for group in groups) > 1


@pytest.mark.parametrize("seed_of_split", ["train", "test"])
def test_the_shuffled_order_is_uniform(seed_of_split):
    """Three samples, 600 seeds: each of the six orders about 100 times, with a standard deviation of 9."""
    index = np.arange(3)
    plan = plan_of([(index[:2], index[:2], -1), (index[2:], index[2:], -1)])
    which = ["train", "test"].index(seed_of_split)
    orders = Counter(tuple(make_stationary(plan, plan, "shuffled", seed)[which].index.tolist()) for seed in range(600))
    assert set(orders) == set(permutations(range(3)))
    assert all(60 <= count <= 140 for count in orders.values())


def test_training_and_test_samples_are_shuffled_independently():
    index = np.arange(20)
    plan = plan_of([(index, index, -1)])
    train, test = make_stationary(plan, plan, "shuffled", 0)
    assert train.index.tolist() != test.index.tolist()


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_repeat_stays_with_the_first_experience(name, seed):
    changing, repeat = made(name, seed=seed), made(name, seed=seed, stationary="repeat")
    first = met(changing.train_stream[0])
    passes = [met(experience) for experience in repeat.train_stream]
    assert len(passes) == 4
    assert passes[0] == first, "the first pass is the first experience itself"
    assert all(Counter(samples) == Counter(first) for samples in passes), "the same inputs and labels in each pass"
    assert len({tuple(samples) for samples in passes}) == 4, "in a new order each time"
    assert [e.n_seen_before for e in repeat.info.experiences] == [0, *[len(first)] * 3]
    assert [e.n_samples for e in repeat.info.experiences] == [len(first)] * 4
    assert repeat.info.boundaries == [i * len(first) for i in range(4)]
    assert [e.classes for e in repeat.info.experiences] == [changing.info.experiences[0].classes] * 4
    assert repeat.info.for_learner.n_samples == 4 * len(first)
    assert repeat.info.for_learner.n_outputs == changing.info.for_learner.n_outputs
    first_test = met(changing.test_stream[0])
    assert [met(experience) for experience in repeat.test_stream] == [first_test] * 4


@pytest.mark.parametrize("kind", ["shuffled", "repeat"])
def test_seeds_decide_the_order(kind):
    one, same, other = (all_met(made("class_split", seed=s, stationary=kind).train_stream) for s in (0, 0, 1))
    assert one == same
    assert one != other


def test_the_last_change_is_for_frozen_streams_alone():
    plan = plan_of([(np.arange(2), np.arange(2), -1)] * 3)
    with pytest.raises(ValueError, match=r"^frozen_after=1 goes with stationary='frozen', not with 'repeat'$"):
        make_stationary(plan, plan, "repeat", 0, frozen_after=1)


def test_unknown_variant():
    plan = plan_of([(np.arange(2), np.arange(2), -1)])
    with pytest.raises(ValueError, match="unknown stationary variant") as error:
        make_stationary(plan, plan, "repeated", 0)
    assert str(error.value) == (
        "unknown stationary variant 'repeated'. Did you mean 'repeat'? Known: frozen, repeat, shuffled"
    )
