"""CIFAR-100 from files in another order: the same classes and images, in other samples, which the fingerprint says."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from continual_metaopt.streams import make_stream
from continual_metaopt.streams.sources import load_source
from continual_metaopt.streams.stream import LearnerInfo

PARQUET = Path(__file__).parents[3] / "shared" / "data" / "cifar100"
needs_cifar100 = pytest.mark.skipif(not PARQUET.is_dir(), reason="CIFAR-100 in Hugging Face's layout is not there")


def images_of(experience):
    """A multiset of (image, label)."""
    return Counter((np.asarray(x).tobytes(), int(y)) for x, y, *_ in experience.dataset)


def test_the_order_of_rows_changes_the_samples_and_not_the_classes():
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
    y = np.repeat(np.arange(6), 10)
    order = random.permutation(60)

    first, second = (
        make_stream("class_split", source=(*rows, x[:12], y[::5]), classes_per_experience=2, seed=3)
        for rows in ((x, y), (x[order], y[order]))
    )

    assert first.info.fingerprint != second.info.fingerprint
    for one, other in zip(first.train_stream, second.train_stream, strict=True):
        assert one.classes_in_this_experience == other.classes_in_this_experience
        assert images_of(one) == images_of(other)
        in_order = ([int(y) for _, y, *_ in experience.dataset] for experience in (one, other))
        assert list(next(in_order)) != list(next(in_order))


@needs_cifar100
@pytest.mark.slow
def test_the_files_are_cifar100_and_divide_into_its_classes():
    source = load_source(f"parquet:{PARQUET}")

    assert source.input_shape == (3, 32, 32)
    for images, n in ((source.train, 500), (source.test, 100)):
        assert np.bincount(images.y).tolist() == [n] * 100
    # the known moments of the training images
    values = np.arange(256) / 255
    shares = [np.bincount(source.train.x[..., channel].ravel(), minlength=256) / 50_000 / 32**2 for channel in range(3)]
    means = [share @ values for share in shares]
    assert means == pytest.approx([0.50707516, 0.48654887, 0.44091784], abs=1e-7)
    deviations = [(share @ (values - mean) ** 2) ** 0.5 for share, mean in zip(shares, means, strict=True)]
    assert deviations == pytest.approx([0.26733429, 0.25643846, 0.27615047], abs=1e-7)

    benchmark = make_stream("class_split", source=f"parquet:{PARQUET}", classes_per_experience=10)
    info = benchmark.info
    assert info.for_learner == LearnerInfo(10, (3, 32, 32), "classification", 50_000)
    assert info.boundaries == list(range(0, 50_000, 5_000))
    assert len({label for experience in info.experiences for label in experience.classes}) == 100
    assert [len(experience.dataset) for experience in benchmark.test_stream] == [1000] * 10
    for experience in (*benchmark.train_stream, *benchmark.test_stream):
        counts = np.bincount(list(experience.dataset.targets), minlength=10)
        assert counts.tolist() == [len(experience.dataset) // 10] * 10
    image = benchmark.train_stream[0].dataset[0][0]
    assert image.shape == (3, 32, 32)
    assert image.min() >= -1
    assert image.max() <= 1
