"""Avalanche benchmarks: scaling, what is told about a stream, and that Avalanche's own strategies run on it."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import streams.quiet_avalanche

import numpy as np
import pytest
import torch
import torchvision
from avalanche.benchmarks.scenarios import CLExperience, CLStream
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torchvision.transforms import Normalize, ToTensor

import streams
from streams import make_stream
from streams.benchmark import ImageDataset, _avalanche_dataset, scale
from streams.images import ImageSet
from streams.plan import Plan
from tests.streams.synthetic import coded_arrays, stored_bytes

ROOT = Path(__file__).parents[2]
TINY_IMAGENET = ROOT.parent / "shared" / "data" / "tiny_imagenet_100"
SOURCE = coded_arrays()
STREAMS = {"class_split": {"classes_per_experience": 3}, "permuted_inputs": {"n_experiences": 4}}


# --- scaling ---------------------------------------------------------------------------------------------------------


def test_scaling_by_hand():
    scaled = scale(torch.tensor([[[0, 255, 51, 204, 128]]], dtype=torch.uint8))
    assert scaled.dtype == torch.float32
    # (x/255 − 0.5) / 0.5; 51/255 = 0.2 and 204/255 = 0.8
    torch.testing.assert_close(scaled, torch.tensor([[[-1.0, 1.0, -0.6, 0.6, 1 / 255]]]), rtol=0, atol=1e-7)
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
SLICES = [slice(None), slice(0, 0), slice(1, 1), slice(3, 7), slice(2, 1000), slice(-3, None), slice(None, None, -2)]


def make_datasets(images, monkeypatch, name, **options):
    """The data sets of a stream before Avalanche wraps them."""
    made = []
    monkeypatch.setattr(
        "streams.benchmark._avalanche_dataset", lambda dataset: made.append(dataset) or _avalanche_dataset(dataset)
    )
    make_stream(name, source=images, **options)
    return made


@pytest.mark.parametrize("stationary", [None, "shuffled"])
@pytest.mark.parametrize("images", [SOURCE, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("name", STREAMS)
def test_a_batch_is_its_samples_bit_for_bit(monkeypatch, name, images, stationary):
    datasets = make_datasets(images, monkeypatch, name, stationary=stationary, **STREAMS[name])
    assert len(datasets) == 8, "four experiences of two splits"
    for dataset in datasets:
        shape = dataset[0][0].shape
        for steps in SLICES:
            samples = [dataset[i] for i in range(len(dataset))[steps]]
            x, y = dataset.batch(steps)
            assert (x.dtype, y.dtype) == (np.float32, np.int64)
            assert x.shape == (len(samples), *shape)
            assert x.flags.c_contiguous
            assert x.tobytes() == b"".join(image.numpy().tobytes() for image, _ in samples)
            assert y.tolist() == [label for _, label in samples]


def test_some_samples_of_a_batch_permuted_and_some_not():
    """As an own stream may have them; on an image that is not square, with all 256 bytes."""
    images = np.arange(2 * 256 * 3).astype(np.uint8).reshape(2, 8, 32, 3)
    permutations = [np.random.RandomState(i).permutation(256) for i in range(2)]
    plan = Plan(np.array([0, 1, 0, 1]), np.arange(4), np.array([-1, 1, 0, -1]), (4,), (0,))
    dataset = ImageDataset(ImageSet(images, np.zeros(2, int)), plan, slice(0, 4), permutations)
    x, y = dataset.batch(slice(0, 4))
    assert y.tolist() == [0, 1, 2, 3]
    assert x.tobytes() == b"".join(dataset[i][0].numpy().tobytes() for i in range(4))
    assert stored_bytes(torch.from_numpy(x[0])).tolist() == images[0].transpose(2, 0, 1).tolist()
    assert stored_bytes(torch.from_numpy(x[1])).reshape(3, 256).T.tolist() == (
        images[1].reshape(256, 3)[permutations[1]].tolist()
    )


def test_a_batch_belongs_to_the_caller(monkeypatch):
    dataset = make_datasets(SOURCE, monkeypatch, "class_split", **STREAMS["class_split"])[0]
    expected, labels = dataset.batch(slice(4))
    for array in dataset.batch(slice(4)):
        array[:] = 0
    assert dataset.batch(slice(4))[0].tobytes() == expected.tobytes()
    assert dataset.batch(slice(4))[1].tolist() == labels.tolist() == [dataset[i][1] for i in range(4)]


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
    assert info.as_record() == {
        "definition": "class_split v1",
        "fingerprint": info.fingerprint,
        "source": "arrays",
        "stationary": None,
        "n_experiences": 4,
        "boundaries": [0, 5, 10, 15],
        "n_outputs": 3,
        "input_shape": (1, 2, 2),
        "task": "classification",
        "n_samples": 20,
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
        "print(sorted({'torch', 'torchvision', 'avalanche', 'sklearn', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names, imported = result.stdout.splitlines()
    assert {"class_split", "permuted_inputs"} <= set(ast.literal_eval(names))
    assert imported == "[]"


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
            assert not {module.partition(".")[0] for module in modules} & {"continual_metaopt", "analysis"}, file


# --- real images -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not TINY_IMAGENET.is_dir(), reason="the images are not beside this repository")
def test_tiny_imagenet_in_the_shape_of_cifar_100():
    benchmark = make_stream("class_split", source=f"parquet:{TINY_IMAGENET}", classes_per_experience=10)
    info = benchmark.info
    assert info.for_learner.n_samples == 50_000
    assert info.for_learner.n_outputs == 10
    assert info.for_learner.input_shape == (3, 32, 32)
    assert info.boundaries == list(range(0, 50_000, 5_000))
    assert len({label for experience in info.experiences for label in experience.classes}) == 100
    assert [len(experience.dataset) for experience in benchmark.test_stream] == [500] * 10
    for experience in (*benchmark.train_stream, *benchmark.test_stream):
        counts = np.bincount(list(experience.dataset.targets), minlength=10)
        assert counts.tolist() == [len(experience.dataset) // 10] * 10
    image = benchmark.train_stream[0].dataset[0][0]
    assert image.shape == (3, 32, 32)
    assert image.min() >= -1
    assert image.max() <= 1
