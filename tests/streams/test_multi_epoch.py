"""Multi-epoch training: passes, whole batches, and what is known of the stream."""

import numpy as np
import pytest

from continual_metaopt.streams import plan_stream
from continual_metaopt.streams.plan import plan_of
from continual_metaopt.streams.stream import ImagePlan
from tests.streams.synthetic import N_PIXELS, coded_arrays

SOURCE = coded_arrays(n_classes=3, per_class=5, test_per_class=2)  # 15 training images and 6 test images


def multi_epoch(**options):
    return plan_stream("multi_epoch", **{"source": SOURCE, "batch_size": 4, "epochs": 3, **options})


def numbers(samples):
    """The number of each image, after checking its label."""
    x, y = samples.batch(slice(None))
    found = np.rint((x.min(axis=(1, 2, 3)) * 0.5 + 0.5) * 255).astype(int) // N_PIXELS
    assert (found % 3 == y).all()
    return found.tolist()


def test_one_experience_of_passes_in_new_orders():
    stream = multi_epoch()
    (train,), (test,) = stream.train, stream.test
    passes = np.array(numbers(train)).reshape(3, 12)
    assert all(len(set(one)) == 12 for one in passes.tolist()), "three of 15 images do not fill a batch of four"
    assert len({tuple(sorted(one)) for one in passes.tolist()}) > 1, "they are not always the same three"
    assert len({tuple(one) for one in passes.tolist()}) == 3
    assert numbers(test) == list(range(15, 21))


def test_info():
    info = multi_epoch().info
    assert (info.definition, info.boundaries, info.test_at) == ("multi_epoch v1", [0], [12, 24, 36])
    assert info.as_record()["test_at"] == [12, 24, 36]
    (experience,) = info.experiences
    met = len(set(numbers(multi_epoch().train[0])))
    assert (experience.n_samples, experience.n_seen_before, experience.classes) == (36, 36 - met, [0, 1, 2])
    sizes = info.for_learner
    assert (sizes.n_outputs, sizes.n_samples, sizes.batch_size) == (3, 36, 4)


def test_the_learner_is_told_nothing_of_the_passes():
    short, long = (multi_epoch(batch_size=5, epochs=epochs).info for epochs in (1, 2))
    assert set(vars(short.for_learner)) == {"n_outputs", "input_shape", "task", "n_samples", "batch_size", "input_type"}
    assert (long.for_learner.n_samples, short.for_learner.n_samples) == (30, 15)


def test_augmented_images_are_new_in_each_pass_and_those_for_testing_stay():
    plain, augmented = (multi_epoch(source="digits", batch_size=1437, augment=augment) for augment in (False, True))
    (x, y), (plain_x, plain_y) = (stream.train[0].batch(slice(None)) for stream in (augmented, plain))
    assert (y == plain_y).all()
    n_different = [len({one.tobytes() for one in images}) for images in (plain_x, x)]
    assert n_different[0] <= 1438
    assert n_different[1] > 2.8 * 1437
    held_out = [stream.test[0].batch(slice(None))[0] for stream in (augmented, plain)]
    np.testing.assert_array_equal(*held_out)
    assert augmented.info.fingerprint != plain.info.fingerprint


def test_some_classes():
    stream = multi_epoch(batch_size=5, classes=[2, 0])
    (train,), (test,) = stream.train, stream.test
    assert sorted(stream.info.experiences[0].classes) == [0, 2]
    assert stream.info.for_learner.n_outputs == 2
    for samples, n in ((train, 30), (test, 4)):
        x, y = samples.batch(slice(None))
        images = np.rint((x.min(axis=(1, 2, 3)) * 0.5 + 0.5) * 255).astype(int) // N_PIXELS
        assert (images % 3 == np.array([2, 0])[y]).all()
        assert len(y) == n


def test_seeds_decide_the_order():
    one, same, other = (numbers(multi_epoch(seed=seed).train[0]) for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_accuracy_is_measured_after_whole_batches():
    plan = plan_of([(np.arange(12), np.arange(12), -1)])
    with pytest.raises(ValueError, match=r"^test_at must be numbers of whole batches of 4, not \(6, 12\)$"):
        ImagePlan(plan, plan, 12, batch_size=4, test_at=(6, 12))
