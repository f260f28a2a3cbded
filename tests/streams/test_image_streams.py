"""What holds for every stream of images, and for its stationary variants."""

import re
from collections import Counter
from inspect import getdoc, signature

import numpy as np
import pytest

from continual_metaopt.streams import STREAMS, plan_stream
from continual_metaopt.streams.benchmark import StreamBenchmark, read_samples
from continual_metaopt.streams.plan import Stationary
from tests.streams.image_streams import IMAGE_STREAMS, SOURCE, VARIANTS, planned
from tests.streams.synthetic import N_CLASSES

SPLITS = ("train", "test")
SLICES = [slice(None), slice(0, 0), slice(1, 1), slice(3, 7), slice(2, 1000), slice(-3, None), slice(None, None, -2)]
every_stream = pytest.mark.parametrize("case", IMAGE_STREAMS)


def met(samples):
    """(image, label) of each sample, in order; images as their bytes."""
    x, y = samples.batch(slice(None))
    return [(image.tobytes(), int(label)) for image, label in zip(x, y, strict=True)]


def inputs(samples):
    """The images of all samples alone."""
    return [image for image, _ in met(samples)]


def all_met(experiences):
    return [sample for samples in experiences for sample in met(samples)]


def facts(info):
    return [(e.first_step, e.n_samples) for e in info.experiences]


def test_every_stream_of_images_is_here():
    own = {name for name in STREAMS if getattr(STREAMS[name], "about", None) and STREAMS[name].about.changes}
    of_images = {name for name in own if STREAMS[name].about.source == "any images"}
    # a single experience has no changes, and noise is new whenever an image is presented
    assert of_images - {"multi_epoch", "drifting_noise"} <= {case.name for case in IMAGE_STREAMS.values()}


@every_stream
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_told_of_a_variant(case, variant):
    info = planned(case, **VARIANTS[variant]).info
    assert info.definition == f"{IMAGE_STREAMS[case].name} v{IMAGE_STREAMS[case].version}"
    assert info.stationary == VARIANTS[variant].get("stationary")


def test_fingerprints_of_different_streams_differ():
    found = {planned(case, **options).info.fingerprint for case in IMAGE_STREAMS for options in VARIANTS.values()}
    assert len(found) == len(IMAGE_STREAMS) * len(VARIANTS)


@every_stream
def test_seeds(case):
    """Equal seeds give equal samples in equal order, other seeds others."""
    one, same, other = (planned(case, seed=seed) for seed in (5, 5, 6))
    for split in SPLITS:
        assert all_met(getattr(one, split)) == all_met(getattr(same, split))
    assert one.info == same.info
    assert all_met(one.train) != all_met(other.train)
    assert one.info.fingerprint != other.info.fingerprint


@every_stream
@pytest.mark.parametrize("variant", VARIANTS)
def test_info_tells_what_is_presented(case, variant):
    stream = planned(case, **VARIANTS[variant])
    info, lengths = stream.info, [len(samples) for samples in stream.train]
    assert len(stream.train) == len(stream.test) == len(info.experiences) >= 3
    assert [e.n_samples for e in info.experiences] == lengths
    assert info.boundaries == [0, *np.cumsum(lengths)[:-1]]
    assert info.for_learner.n_samples == sum(lengths)
    assert info.for_learner.task == "classification"
    labels = {label for split in SPLITS for _, label in all_met(getattr(stream, split))}
    assert labels <= set(range(info.for_learner.n_outputs))
    for experience, samples in zip(info.experiences, stream.train, strict=True):
        assert experience.classes == sorted(set(experience.classes))
        assert len(experience.classes) <= min(N_CLASSES, len(samples))
        assert 0 <= experience.n_seen_before <= len(samples)


@every_stream
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_is_its_samples_one_by_one(case, variant):
    stream = planned(case, **VARIANTS[variant])
    for samples in (*stream.train[:3], stream.test[0]):
        one_by_one = [samples.batch(slice(i, i + 1)) for i in range(len(samples))]
        for steps in SLICES:
            x, y = samples.batch(steps)
            assert (x.dtype, y.dtype, x.flags.c_contiguous) == (np.float32, np.int64, True)
            assert x.shape == (len(one_by_one[steps]), *stream.info.for_learner.input_shape)
            assert x.tobytes() == b"".join(image.tobytes() for image, _ in one_by_one[steps])
            assert y.tolist() == [int(label[0]) for _, label in one_by_one[steps]]


@every_stream
def test_an_avalanche_benchmark_presents_the_same(case):
    stream = planned(case)
    benchmark = StreamBenchmark(stream)
    for split, experiences in (("train", benchmark.train_stream), ("test", benchmark.test_stream)):
        for experience, samples in zip(experiences, getattr(stream, split), strict=True):
            x, y = read_samples(experience.dataset, slice(0, len(samples)))
            assert met(samples) == [(image.tobytes(), label) for image, label in zip(x, y.tolist(), strict=True)]
            assert list(experience.dataset.targets) == y.tolist()
            assert set(experience.classes_in_this_experience) == set(y.tolist())


# --- stationary variants ---------------------------------------------------------------------------------------------


@every_stream
@pytest.mark.parametrize("seed", [0, 1])
def test_shuffled_presents_the_same_samples_in_one_other_order(case, seed):
    changing, shuffled = planned(case, seed=seed), planned(case, seed=seed, stationary="shuffled")
    for split in SPLITS:
        before, after = all_met(getattr(changing, split)), all_met(getattr(shuffled, split))
        assert Counter(before) == Counter(after)
        assert before != after
        lengths = [[len(samples) for samples in getattr(stream, split)] for stream in (changing, shuffled)]
        assert lengths[0] == lengths[1]
    assert facts(changing.info) == facts(shuffled.info)
    assert changing.info.for_learner == shuffled.info.for_learner
    seen = [sum(e.n_seen_before for e in stream.info.experiences) for stream in (changing, shuffled)]
    assert seen[0] == seen[1], "whatever the order, all but the first of equal inputs were seen before"


@every_stream
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("last", [0, 1, 2])
def test_frozen_changes_up_to_an_experience_and_then_stays_with_it(case, seed, last):
    changing = planned(case, seed=seed)
    frozen = planned(case, seed=seed, stationary="frozen", frozen_after=last)
    assert len(frozen.train) == len(changing.train), "as many experiences"
    for split in SPLITS:
        before, after = getattr(changing, split), getattr(frozen, split)
        assert [met(samples) for samples in after[: last + 1]] == [met(samples) for samples in before[: last + 1]]
        assert {len(samples) for samples in after[last:]} == {len(before[last])}
    passes = [inputs(samples) for samples in frozen.train[last:]]
    assert all(Counter(one) == Counter(passes[0]) for one in passes), "the same inputs in each pass"
    assert len({tuple(one) for one in passes}) == len(passes), "in a new order each time"
    if not IMAGE_STREAMS[case].redraws_labels:
        assert all(Counter(met(samples)) == Counter(met(frozen.train[last])) for samples in frozen.train[last:])
    assert all(met(samples) == met(frozen.test[last]) for samples in frozen.test[last:])
    info, n = frozen.info, len(changing.train[last])
    assert info.experiences[: last + 1] == changing.info.experiences[: last + 1]
    assert [e.classes for e in info.experiences[last:]] == [info.experiences[last].classes] * len(passes)
    assert [e.n_seen_before for e in info.experiences[last + 1 :]] == [n] * (len(passes) - 1)
    assert info.for_learner.n_outputs == changing.info.for_learner.n_outputs


@every_stream
def test_repeat_is_frozen_from_the_start(case):
    repeat, frozen = planned(case, stationary="repeat"), planned(case, stationary="frozen")
    assert repeat.info.fingerprint == frozen.info.fingerprint
    assert all_met(repeat.train) == all_met(frozen.train)


@every_stream
def test_frozen_after_the_last_experience_is_the_changing_stream(case):
    changing = planned(case)
    frozen = planned(case, stationary="frozen", frozen_after=len(changing.train) - 1)
    assert frozen.info.fingerprint == changing.info.fingerprint


# --- gradual transitions ---------------------------------------------------------------------------------------------


@every_stream
@pytest.mark.parametrize("stationary", [None, "shuffled", "repeat", "frozen"])
def test_a_gradual_transition_keeps_samples_and_lengths(case, stationary):
    abrupt, gradual = (planned(case, stationary=stationary, transition_width=width) for width in (0, 7))
    assert facts(abrupt.info) == facts(gradual.info)
    if not IMAGE_STREAMS[case].redraws_labels or stationary in (None, "shuffled"):
        assert Counter(all_met(abrupt.train)) == Counter(all_met(gradual.train))
    assert Counter(map(inputs_of, abrupt.train)) != Counter(map(inputs_of, gradual.train))
    assert [met(samples) for samples in abrupt.test] == [met(samples) for samples in gradual.test]
    seen = [sum(e.n_seen_before for e in stream.info.experiences) for stream in (abrupt, gradual)]
    assert seen[0] == seen[1]


def inputs_of(samples):
    return tuple(inputs(samples))


# --- options ---------------------------------------------------------------------------------------------------------


@every_stream
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"stationary": "froze"},
            "unknown stationary variant 'froze'. Did you mean 'frozen'? Known: frozen, repeat, shuffled",
        ),
        (
            {"stationary": "frozen", "frozen_after": 99},
            "frozen_after must be the number of an experience, 0 to {last}, not 99",
        ),
        (
            {"stationary": "frozen", "frozen_after": -1},
            "frozen_after must be the number of an experience, 0 to {last}, not -1",
        ),
        ({"frozen_after": 1}, "frozen_after=1 goes with stationary='frozen', not with None"),
        (
            {"stationary": "repeat", "frozen_after": 2},
            "frozen_after=2 goes with stationary='frozen', not with 'repeat'",
        ),
        (
            {"transition_width": -1},
            "transition_width must be between 0 and the length of the shortest experience, {shortest}, not -1",
        ),
        (
            {"transition_width": 1000},
            "transition_width must be between 0 and the length of the shortest experience, {shortest}, not 1000",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_common_options_that_do_not_fit(case, options, message):
    lengths = [len(samples) for samples in planned(case).train]
    expected = message.format(last=len(lengths) - 1, shortest=min(lengths))
    with pytest.raises(ValueError, match=re.escape(expected)) as error:
        planned(case, **options)
    assert str(error.value) == expected


@pytest.mark.parametrize("name", sorted({case.name for case in IMAGE_STREAMS.values()}))
def test_an_option_that_the_stream_does_not_have(name):
    with pytest.raises(TypeError, match="colour"):
        plan_stream(name, source=SOURCE, colour="red")


@pytest.mark.parametrize("name", sorted({case.name for case in IMAGE_STREAMS.values()}))
def test_every_option_says_its_type(name):
    """The command line and study files check options by it."""
    parameters = signature(STREAMS[name]).parameters
    assert all(parameter.annotation is not parameter.empty for parameter in parameters.values())
    assert parameters["stationary"].annotation == Stationary | None
    assert (parameters["seed"].annotation, parameters["frozen_after"].annotation) == (int, int)


@pytest.mark.parametrize("name", sorted({case.name for case in IMAGE_STREAMS.values()}))
def test_docstrings_describe_every_option(name):
    described = re.findall(r"^    (\w+): ", getdoc(STREAMS[name]).partition("Args:\n")[2], re.MULTILINE)
    assert set(signature(STREAMS[name]).parameters) <= set(described)


# --- longer streams, of all kinds ------------------------------------------------------------------------------------

LONGER = [
    ("class_split", {"classes_per_experience": 3, "seed": 2}, "n_experiences", 2, 4),
    ("class_split", {"classes_per_experience": 3, "seed": 2, "labels": "global"}, "n_experiences", 2, 4),
    ("class_split", {"classes_per_experience": 3, "replacement": True}, "n_experiences", 3, 30),
    ("permuted_inputs", {}, "n_experiences", 2, 5),
    ("permuted_labels", {"samples_per_experience": 30}, "n_experiences", 2, 5),
    ("multi_epoch", {"batch_size": 4}, "epochs", 3, 5),
    ("tracking", {"samples_per_experience": 40}, "n_samples", 60, 100),
    ("bit_flipping", {"flip_every": 300}, "n_samples", 700, 3100),
]


@pytest.mark.parametrize(("name", "options", "length", "few", "many"), LONGER)
def test_longer_streams_begin_with_the_shorter_ones(name, options, length, few, many):
    source = {} if name in ("tracking", "bit_flipping") else {"source": SOURCE}
    short, long = (plan_stream(name, **source, **options, **{length: n}) for n in (few, many))
    for split in SPLITS:
        before, after = ([part.batch(slice(None)) for part in getattr(stream, split)] for stream in (short, long))
        for one, other in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True):
            shorter = np.concatenate(one)
            np.testing.assert_array_equal(shorter, np.concatenate(other)[: len(shorter)])
            assert len(np.concatenate(other)) > len(shorter) or split == "test"


@pytest.mark.parametrize(
    ("name", "options"),
    [("class_split", {"classes_per_experience": 3}), ("permuted_inputs", {}), ("drifting_rotation", {})],
)
def test_fewer_samples_are_the_first_ones_of_each_experience(name, options):
    whole, part, more = (plan_stream(name, source=SOURCE, **options, samples_per_experience=n) for n in (None, 5, 1000))
    assert [met(samples) for samples in part.train] == [met(samples)[:5] for samples in whole.train]
    assert [met(samples) for samples in part.test] == [met(samples) for samples in whole.test], "test samples stay"
    assert part.info.boundaries == list(range(0, 5 * len(whole.train), 5))
    assert all_met(more.train) == all_met(whole.train)
