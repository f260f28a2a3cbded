"""Avalanche benchmarks: scaling, what is told about a stream, and that Avalanche's own strategies run on it."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from avalanche.benchmarks.scenarios import CLExperience, CLStream
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch.utils.data import TensorDataset
from torchvision.transforms import Normalize, ToTensor

from continual_metaopt import streams
from continual_metaopt.streams import make_stream, plan_stream
from continual_metaopt.streams.benchmark import SampleDataset, read_samples
from continual_metaopt.streams.images import ImageSet
from continual_metaopt.streams.input_changes import PixelPermutations
from continual_metaopt.streams.plan import Plan
from continual_metaopt.streams.samples import ImageSamples, scale
from tests.streams.synthetic import coded_arrays, stored_bytes

ROOT = Path(__file__).parents[2]
SOURCE = coded_arrays()
STREAMS = {"class_split": {"classes_per_experience": 3}, "permuted_inputs": {"n_experiences": 4}}


# --- scaling ---------------------------------------------------------------------------------------------------------


def test_scaling_by_hand():
    scaled = scale(np.array([[[0, 255, 51, 204, 128]]], dtype=np.uint8))
    assert scaled.dtype == np.float32
    # (x/255 − 0.5) / 0.5; 51/255 = 0.2 and 204/255 = 0.8
    np.testing.assert_allclose(scaled, [[[-1.0, 1.0, -0.6, 0.6, 1 / 255]]], rtol=0, atol=1e-7)
    assert scaled[0, 0, 0] == -1
    assert scaled[0, 0, 1] == 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", STREAMS)
def test_images_are_scaled_bit_for_bit_as_by_torchvision(name, channels):
    """All 256 bytes, in an image that is not square."""
    x = np.arange(256, dtype=np.uint8).reshape(1, 8, 32, 1)
    x = np.concatenate([np.roll(x, 100 * channel, axis=2) for channel in range(channels)], axis=3)
    x = np.concatenate([x, 255 - x])
    reference = torchvision.transforms.Compose([ToTensor(), Normalize((0.5,) * channels, (0.5,) * channels)])
    expected = {image.tobytes(): reference(image) for image in x}
    options = {"classes_per_experience": 2} if name == "class_split" else {"n_experiences": 1}
    benchmark = make_stream(name, source=(x, [0, 1], x, [0, 1]), **options)
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for image, label, _ in stream[0].dataset:
            assert image.dtype == torch.float32
            assert image.shape == (channels, 8, 32)
            assert image.is_contiguous()
            if name == "class_split":
                original = stored_bytes(image).transpose(1, 2, 0).astype(np.uint8)
                assert torch.equal(image, expected[original.tobytes()])
            else:  # the same values at other places
                assert torch.equal(image.flatten().sort().values, reference(x[label]).flatten().sort().values)


def test_images_are_not_changed_by_looking_at_them():
    """Scaling works in place, on a copy."""
    dataset = make_stream("permuted_inputs", source=SOURCE).train_stream[0].dataset
    first, again = dataset[0][0], dataset[0][0]
    assert torch.equal(first, again)
    first.zero_()
    assert torch.equal(dataset[0][0], again)


# --- many samples at once --------------------------------------------------------------------------------------------

COLOUR = tuple(np.stack([part, 255 - part, part ^ 1], axis=-1) if part.ndim == 3 else part for part in SOURCE)


def test_some_samples_of_a_batch_permuted_and_some_not():
    """As an own stream may have them; on an image that is not square, with all 256 bytes."""
    images = np.arange(2 * 256 * 3).astype(np.uint8).reshape(2, 8, 32, 3)
    permutations = [np.random.RandomState(i).permutation(256) for i in range(2)]
    plan = Plan(np.array([0, 1, 0, 1]), np.arange(4), np.array([-1, 1, 0, -1]), (4,))
    samples = ImageSamples(
        ImageSet(images, np.zeros(2, int)), plan, slice(0, 4), PixelPermutations(permutations.__getitem__, 2)
    )
    x, y = samples.batch(slice(0, 4))
    assert y.tolist() == [0, 1, 2, 3]
    assert x.tobytes() == b"".join(SampleDataset(samples)[i][0].numpy().tobytes() for i in range(4))
    assert stored_bytes(torch.from_numpy(x[0])).tolist() == images[0].transpose(2, 0, 1).tolist()
    assert stored_bytes(torch.from_numpy(x[1])).reshape(3, 256).T.tolist() == (
        images[1].reshape(256, 3)[permutations[1]].tolist()
    )


def test_a_batch_belongs_to_the_caller():
    samples = plan_stream("class_split", source=SOURCE, **STREAMS["class_split"]).train[0]
    expected, labels = samples.batch(slice(4))
    for array in samples.batch(slice(4)):
        array[:] = 0
    assert samples.batch(slice(4))[0].tobytes() == expected.tobytes()
    assert samples.batch(slice(4))[1].tolist() == labels.tolist() == [SampleDataset(samples)[i][1] for i in range(4)]


def same_as_indexing(dataset, steps):
    """``read_samples``, after comparing it with indexing."""
    x, y = read_samples(dataset, steps)
    expected = [dataset[i] for i in range(steps.start, steps.stop)]
    assert len(x) == len(y) == len(expected) == steps.stop - steps.start
    for i, (image, label, *_) in enumerate(expected):
        assert x[i].tobytes() == np.asarray(image).tobytes()
        assert (x[i].dtype, x[i].shape) == (np.asarray(image).dtype, np.asarray(image).shape)
        assert (y[i] == np.asarray(label)).all()
    return x, y


def at_once(dataset, monkeypatch):
    """Whether ``read_samples`` reads many samples of a data set at once."""
    wanted = [slice(0, 0), slice(0, 1), slice(2, 5), slice(0, len(dataset)), slice(len(dataset), len(dataset))]
    batches, batch = [], ImageSamples.batch
    with monkeypatch.context() as watching:
        watching.setattr(ImageSamples, "batch", lambda self, steps: batches.append(steps) or batch(self, steps))
        for steps in wanted:
            same_as_indexing(dataset, steps)
    n_read = sum(any(steps is asked for asked in wanted) for steps in batches)  # others are of single samples
    assert n_read in (0, len(wanted))
    return n_read == len(wanted)


@pytest.mark.parametrize("stationary", [None, "shuffled", "repeat"])
@pytest.mark.parametrize("images", [SOURCE, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("name", STREAMS)
def test_samples_of_our_streams_are_read_at_once(monkeypatch, name, images, stationary):
    benchmark = make_stream(name, source=images, stationary=stationary, **STREAMS[name])
    for experience in (*benchmark.train_stream, *benchmark.test_stream):
        if len(experience.dataset) >= 5:
            assert at_once(experience.dataset, monkeypatch)
        x, y = same_as_indexing(experience.dataset, slice(0, len(experience.dataset)))
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        assert x.flags.c_contiguous
        assert x.flags.writeable


def inverted(image):
    return -image


def moved(image):
    return image + torch.rand(())


def with_transforms(dataset):
    """A data set that has transformations for training, and others for evaluation."""
    groups = {"train": (inverted, None), "eval": (lambda image: 2 * image, lambda label: label + 1)}
    return AvalancheDataset([dataset], transform_groups=groups)


def fresh():
    return make_stream("permuted_inputs", source=SOURCE, n_experiences=2).train_stream[0].dataset


AT_ONCE = {
    "as it is": lambda d: d,
    "for training": lambda d: d.train(),
    "for evaluation": lambda d: d.eval(),
    "with the transformations of a group": lambda d: d.with_transforms("eval"),
    "wrapped again": lambda d: AvalancheDataset([d]),
    "other targets beside the labels": lambda d: d.update_data_attribute("targets", [0] * len(d)),
}
ONE_BY_ONE = {
    "some samples": lambda d: d.subset([3, 1, 2, 7, 0, 5]),
    "all samples in reverse": lambda d: d.subset(list(range(len(d)))[::-1]),
    "some of some samples": lambda d: d.subset([3, 1, 2, 7, 0, 5, 4]).subset([0, 6, 2, 4, 1]),
    "twice": lambda d: d.concat(d),
    "with others": lambda d: d.concat(fresh()),
    "after others": lambda d: AvalancheDataset([fresh(), d]),
    "some with others": lambda d: d.subset([1, 0, 3]).concat(fresh().subset([5, 2])),
    "transformed": with_transforms,
    "transformed for evaluation": lambda d: with_transforms(d).eval(),
    "transformed by what is frozen": lambda d: with_transforms(d).freeze_transforms(),
    "transformed by what is frozen for evaluation": lambda d: with_transforms(d).freeze_transforms().eval(),
    "some that are transformed": lambda d: with_transforms(d).subset([3, 1, 4, 1, 5]),
    "transformed, and then no more": lambda d: with_transforms(d).remove_current_transform_group(),
    "with another transformation": lambda d: d.replace_current_transform_group((inverted, None)),
    "with other labels": lambda d: d.replace_current_transform_group((None, lambda label: label + 1)),
    "with a frozen transformation": lambda d: d.replace_current_transform_group((inverted, None)).freeze_transforms(),
    "with a transformation of a transformation": lambda d: with_transforms(d).replace_current_transform_group(
        (lambda image: 3 * image, None)
    ),
    "in PyTorch's subset": lambda d: torch.utils.data.Subset(d, [4, 2, 0, 1, 3, 3]),
    "in PyTorch's concatenation": lambda d: torch.utils.data.ConcatDataset([d, fresh()]),
}


@pytest.mark.filterwarnings("ignore:Concatenated datasets have different transformation groups")
@pytest.mark.parametrize("name", [*AT_ONCE, *ONE_BY_ONE])
def test_samples_are_read_as_indexing_gives_them(monkeypatch, name):
    dataset = (AT_ONCE | ONE_BY_ONE)[name](fresh())
    assert at_once(dataset, monkeypatch) is (name in AT_ONCE)


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(torch.randn(9, 3), torch.arange(9)),
        TensorDataset(torch.randn(9, 3, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)),
        TensorDataset(torch.arange(9), torch.arange(9, dtype=torch.uint8), torch.zeros(9)),
        [(np.full((2, 2), i, np.float32), i) for i in range(9)],
        [([float(i), 0.5], float(i)) for i in range(9)],
    ],
    ids=["classes", "regression", "three tensors", "arrays", "lists"],
)
def test_samples_of_any_data_set_are_read(dataset):
    for steps in (slice(0, 1), slice(2, 5), slice(0, 9)):
        same_as_indexing(dataset, steps)
    x, y = read_samples(dataset, slice(4, 4))
    assert len(x) == len(y) == 0


def test_what_is_read_is_the_readers():
    for dataset in (fresh(), TensorDataset(torch.ones(5, 3), torch.ones(5, 2))):
        before = [np.asarray(part).copy() for part in dataset[0][:2]]
        for array in read_samples(dataset, slice(0, 5)):
            array[:] = 0
        assert all((np.asarray(part) == expected).all() for part, expected in zip(dataset[0][:2], before, strict=True))


def test_random_transformations_are_drawn_in_order():
    dataset = fresh().replace_current_transform_group((moved, None))
    torch.manual_seed(0)
    expected = [dataset[i][0].numpy().tobytes() for i in range(2, 7)]
    torch.manual_seed(0)
    read_samples(dataset, slice(2, 2))
    assert [image.tobytes() for image in read_samples(dataset, slice(2, 7))[0]] == expected


# --- what is told about a stream -------------------------------------------------------------------------------------


def test_info_of_a_class_split():
    benchmark = make_stream("class_split", source=SOURCE, classes_per_experience=3, samples_per_experience=5)
    info = benchmark.info
    assert info.definition == "class_split v1"
    assert info.source == "arrays"
    assert info.stationary is None
    assert info.boundaries == [0, 5, 10, 15]
    assert [(e.first_step, e.n_samples, e.n_seen_before) for e in info.experiences] == [
        (0, 5, 0),
        (5, 5, 0),
        (10, 5, 0),
        (15, 5, 0),
    ]
    assert len(info.fingerprint) == 32
    int(info.fingerprint, 16)
    assert info.source_hash not in (None, info.fingerprint)
    assert info.as_record() == {
        "definition": "class_split v1",
        "fingerprint": info.fingerprint,
        "source": "arrays",
        "source_hash": info.source_hash,
        "splits": {},
        "stationary": None,
        "n_experiences": 4,
        "boundaries": [0, 5, 10, 15],
        "test_at": [],
        "bytes_per_sample": None,
        "n_outputs": 3,
        "input_shape": (1, 2, 2),
        "task": "classification",
        "n_samples": 20,
        "batch_size": 1,
        "input_type": "float32",
    }


def test_boundaries_of_experiences_of_different_lengths():
    x, y, x_test, y_test = coded_arrays(n_classes=4, per_class=10)
    kept = np.concatenate([np.flatnonzero(y == label)[: 2 + 2 * label] for label in range(4)])  # 2, 4, 6, 8 images
    info = make_stream("class_split", source=(x[kept], y[kept], x_test, y_test), classes_per_experience=2, seed=1).info
    lengths = [sum(2 + 2 * label for label in experience.classes) for experience in info.experiences]
    assert sum(lengths) == 20
    assert [e.n_samples for e in info.experiences] == lengths
    assert info.boundaries == [0, lengths[0]]


def test_a_learner_is_told_sizes_only():
    """Streams that differ in their boundaries alone tell the learner the same."""
    few, many = (
        make_stream("class_split", source=SOURCE, labels="global", classes_per_experience=k).info for k in (6, 2)
    )
    assert few.boundaries == [0, 24]
    assert many.boundaries == [0, 8, 16, 24, 32, 40]
    assert few.for_learner == many.for_learner
    assert dataclasses.asdict(few.for_learner) == {
        "n_outputs": 12,
        "input_shape": (1, 2, 2),
        "task": "classification",
        "n_samples": 48,
        "batch_size": 1,
        "input_type": "float32",
    }


# --- Avalanche -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stationary", [None, "shuffled", "repeat"])
@pytest.mark.parametrize("name", STREAMS)
def test_experiences_are_avalanches(name, stationary):
    benchmark = make_stream(name, source=SOURCE, stationary=stationary, **STREAMS[name])
    for stream, split in ((benchmark.train_stream, "train"), (benchmark.test_stream, "test")):
        assert isinstance(stream, CLStream)
        assert stream.name == split
        assert len(stream) == len(benchmark.info.experiences) == 4
        for i, experience in enumerate(stream):
            assert isinstance(experience, CLExperience)
            assert experience.current_experience == i
            assert experience.origin_stream is stream
            assert experience.task_labels == [0]
            labels = [label for _, label, _ in experience.dataset]
            assert list(experience.dataset.targets) == labels
            assert set(experience.classes_in_this_experience) == set(labels)
            image, label, task_label = experience.dataset[0]
            assert (type(label), task_label) == (int, 0)
            assert image.shape == benchmark.info.for_learner.input_shape
    assert [len(e.dataset) for e in benchmark.train_stream] == [e.n_samples for e in benchmark.info.experiences]


@pytest.mark.filterwarnings("ignore:No loggers specified")
@pytest.mark.parametrize("name", STREAMS)
def test_avalanches_naive_strategy_learns_from_it(name):
    options = {"class_split": {"classes_per_experience": 5}, "permuted_inputs": {"n_experiences": 2}}[name]
    benchmark = make_stream(name, source="digits", **options)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, benchmark.info.for_learner.n_outputs))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=32,
        train_epochs=1,
        eval_mb_size=32,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
    )
    for i, (train, test) in enumerate(zip(benchmark.train_stream, benchmark.test_stream, strict=True)):
        strategy.train(train)
        measured = strategy.eval(test)
        (accuracy,) = (value for key, value in measured.items() if key.startswith("Top1") and key.endswith(f"{i:03d}"))
        assert accuracy > 0.5, "one pass is enough to learn most of the digits of an experience"
    assert strategy.clock.train_exp_counter == 2


def test_streams_go_through_a_data_loader():
    dataset = make_stream("class_split", source=SOURCE, classes_per_experience=3).train_stream[0].dataset
    images, labels, task_labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=12)))
    assert images.shape == (12, 1, 2, 2)
    assert labels.tolist() == list(dataset.targets)
    assert task_labels.tolist() == [0] * 12


# --- imports ---------------------------------------------------------------------------------------------------------


def test_listing_streams_imports_neither_torch_nor_avalanche():
    code = (
        "import sys, streams\n"
        "print(sorted(streams.STREAMS.descriptions()))\n"
        "print(sorted({'torch', 'torchvision', 'avalanche', 'sklearn', 'numpy'} & set(sys.modules)))\n"
        "streams.make_stream.__doc__\n"
        "print(sorted({'torch', 'torchvision', 'avalanche', 'sklearn'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names, imported, imported_for_help = result.stdout.splitlines()
    assert {"class_split", "permuted_inputs"} <= set(ast.literal_eval(names))
    assert imported == imported_for_help == "[]"


def test_streams_import_nothing_else_of_this_project():
    for file in Path(streams.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                modules = [node.module]
            else:
                continue
            ours = {module for module in modules if module.startswith(("continual_metaopt", "streams", "analysis"))}
            assert all(module.startswith("continual_metaopt.streams") for module in ours), file
