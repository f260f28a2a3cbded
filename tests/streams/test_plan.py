"""Plans: how often a sample came before, passes over images, hashes."""

from collections import Counter

import numpy as np
import pytest

from continual_metaopt.streams import plan
from continual_metaopt.streams.plan import Plan, in_passes, plan_of, random_state
from continual_metaopt.streams.stream import ExperienceInfo, LearnerInfo, StreamInfo


def random_plan(n=300, n_images=17):
    state = np.random.RandomState(0)
    lengths = (n // 3, n // 2, n - n // 3 - n // 2)
    columns = [state.randint(low, high, n).astype(np.int32) for low, high in ((0, n_images), (0, 5), (-1, 3))]
    return Plan(*columns, lengths)


def test_occurrences_by_hand():
    """Image 3 unchanged, image 3 with change 0, image 0 unchanged."""
    some = plan_of([([3, 3, 0], [1, 2, 3], [-1, 0, -1]), ([3, 0, 3, 3], [1, 1, 1, 1], [-1, -1, 0, -1])])
    assert some.occurrence().tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert some.seen_before == (0, 4)


def test_an_empty_plan():
    empty = plan_of([([], [], -1), ([], [], -1)])
    assert (empty.occurrence().tolist(), empty.seen_before, empty.lengths) == ([], (0, 0), (0, 0))


@pytest.mark.parametrize("piece", [1, 7, 100, 2**20])
def test_pieces_do_not_matter(monkeypatch, piece):
    monkeypatch.setattr(plan, "PIECE", piece)
    some, met, expected = random_plan(), Counter(), []
    for key in zip(some.index.tolist(), some.change.tolist(), strict=True):
        expected.append(met[key])
        met[key] += 1
    assert some.occurrence().tolist() == expected
    again = np.array(expected) > 0
    assert some.seen_before == tuple(int(again[steps].sum()) for steps in some.experiences())
    assert some.digest().hex() == "277f0750e258bab56f6ccb340020883b3e98110daac8c2f2e89771a2d3d55144"


@pytest.mark.parametrize("n", [1, 4, 5, 6, 23])
def test_passes(n):
    members = np.array([2, 3, 5, 7, 11])
    drawn = in_passes(members, n, random_state(0, 0))
    assert len(drawn) == n
    passes = [drawn[start : start + 5].tolist() for start in range(0, n, 5)]
    assert all(sorted(one) == members.tolist() for one in passes[:-1])
    assert len(set(passes[-1])) == len(passes[-1])
    assert set(drawn) <= set(members)
    assert len({tuple(one) for one in passes}) == len(passes)
    assert drawn.tolist() == in_passes(members, 100, random_state(0, 0))[:n].tolist()


def test_a_part_of_a_pass_does_not_keep_the_whole_pass_in_memory():
    drawn = in_passes(np.arange(1000), 10, random_state(0, 0))
    assert drawn.base is None


def test_purposes_and_indices_have_sequences_of_their_own():
    first = {tuple(random_state(0, *numbers).randint(2**31, size=2)) for numbers in ((0,), (1,), (0, 1), (0, 0, 1))}
    assert len(first) == 4
    assert random_state(0, 3).randint(2**31) == random_state(0, 3, 0).randint(2**31)


@pytest.mark.parametrize(
    ("lengths", "what"),
    [([10, 0, 5], "experience 1 has no samples"), ([], "there is no experience")],
    ids=["an empty one", "none"],
)
def test_every_experience_has_samples(lengths, what):
    experiences = [ExperienceInfo([], sum(lengths[:number]), n, 0) for number, n in enumerate(lengths)]
    sizes = LearnerInfo(2, (1,), "classification", sum(lengths))
    message = f"mine v1: {what}; choose options of the stream that give each at least one"
    with pytest.raises(ValueError, match=f"^{message}$"):
        StreamInfo("mine v1", "f", "digits", None, experiences, sizes)
