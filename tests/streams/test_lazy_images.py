"""Sources larger than memory: the same streams as of decoded images, in bounded memory, decoded ahead of the reader."""

import copy
import itertools
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from continual_metaopt import MetaOptimize, OnlineLearner
from continual_metaopt.streams import make_stream, plan_stream, sources
from continual_metaopt.streams.benchmark import SampleDataset, StreamBenchmark
from continual_metaopt.streams.lazy_images import LazyImages, ReadAhead
from continual_metaopt.streams.sources import load_source
from tests.streams.synthetic import coded_images, encode, write_folder, write_parquet

ROOT = Path(__file__).parents[2]
N = 60
IMAGES = coded_images(range(N))
LABELS = np.arange(N) % 4
SPLIT = 48  # images before it are for training, where there is a test split
LIMIT = 64  # bytes; 240 are more, and of images 2 × 2 four are decoded ahead
DECODED = 2**62


@pytest.fixture(autouse=True)
def any_limit(tmp_path, monkeypatch):
    """Sources of a few bytes may be larger than memory; and an empty cache."""
    monkeypatch.setattr(sources, "LEAST_MEMORY_LIMIT", 1)
    monkeypatch.setenv("CONTINUAL_METAOPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def decoded_by(monkeypatch):
    """Name of the thread that decoded each image, by its row in the index."""
    found = []
    decode = LazyImages._decode

    def note(self, row):
        found.append((row, threading.current_thread().name))
        return decode(self, row)

    monkeypatch.setattr(LazyImages, "_decode", note)
    return found


def entries(tmp_path):
    folder = tmp_path / "cache" / "decoded_images"
    return [path for path in folder.iterdir() if path.is_dir()] if folder.exists() else []


def load(spec, **options):
    """As a new process would, which remembers nothing."""
    sources._load_named.cache_clear()
    return load_source(spec, **options)


def grey(i):
    return encode(IMAGES[i])


def colour(i):
    return encode(np.stack([IMAGES[i], 255 - IMAGES[i], IMAGES[i] ^ 1], axis=-1))


CONTENTS = {
    "grey": [grey(i) for i in range(N)],
    "colour": [colour(i) for i in range(N)],
    "colour among grey": [colour(i) if i in (SPLIT - 1, N - 1) else grey(i) for i in range(N)],
    "resized": [encode(np.pad(IMAGES[i], ((i % 3, 0), (0, i % 2)))) if i % 5 else colour(i) for i in range(N)],
    "unreadable": [b"damaged" if i in (3, 20, N - 2) else colour(i) for i in range(N)],
}


def write(path, kind, images):
    """A source of one of the kinds."""
    parts = {"": range(N)} if kind.endswith("alone") else {"train": range(SPLIT), "test": range(SPLIT, N)}
    for name, part in parts.items():
        if kind.startswith("parquet"):
            write_parquet(path / f"{name}-0.parquet", [images[i] for i in part], LABELS[part])
        for i in part if kind.startswith("folder") else ():
            file = path / name / "abcd"[i % 4] / f"{i:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(images[i])
    return f"{kind.split()[0]}:{path}"


KINDS = ["parquet", "parquet alone", "folder", "folder alone"]


# --- the same as decoded ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_larger_than_memory_is_the_same_bit_for_bit(tmp_path, kind, content):
    spec, options = write(tmp_path / "images", kind, CONTENTS[content]), {"skip_unreadable": content == "unreadable"}
    spec = spec.replace(":", "+resize=2:", 1) if content == "resized" else spec
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what is left out
        whole, made, kept = (load(spec, memory_limit=limit, **options) for limit in (DECODED, LIMIT, LIMIT))
    for lazy in (made, kept):
        for name in ("name", "classes", "content_hash", "left_out", "input_shape", "decoded_bytes"):
            assert getattr(lazy, name) == getattr(whole, name)
        for split in ("train", "test"):
            images, expected = getattr(lazy, split), getattr(whole, split)
            assert isinstance(images.x, LazyImages)
            assert images.x.shape == expected.x.shape
            assert images.x[:].dtype == images.x.dtype == np.uint8
            np.testing.assert_array_equal(images.x[:], expected.x)
            np.testing.assert_array_equal(images.y, expected.y)
    assert len(whole.left_out) == (content == "unreadable") * (1 if kind.endswith("alone") else 2)


STREAMS = {
    "class_split": {"classes_per_experience": 2, "transition_width": 5},
    "permuted_inputs": {"n_experiences": 3},
}


@pytest.mark.parametrize(
    "memory_limit",
    [
        pytest.param(1, id="an image ahead"),
        pytest.param(LIMIT, id="four ahead"),
        pytest.param(200, id="twelve ahead", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("stationary", [None, "shuffled", "repeat"])
@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("kind", ["parquet", "folder alone"])
def test_streams_are_the_same_bit_for_bit(tmp_path, kind, name, stationary, memory_limit):
    options = {"source": write(tmp_path / "images", kind, CONTENTS["colour"]), "stationary": stationary}
    whole, lazy = (
        plan_stream(name, memory_limit=limit, **options, **STREAMS[name]) for limit in (DECODED, memory_limit)
    )
    assert lazy.info == whole.info
    for parts, expected in ((lazy.train, whole.train), (lazy.test, whole.test)):
        for size in (1, 7, 1000):
            for part, other in zip(parts, expected, strict=True):
                for start in range(0, len(part), size):
                    for array, right in zip(part.batch(s := slice(start, start + size)), other.batch(s), strict=True):
                        assert array.dtype == right.dtype
                        np.testing.assert_array_equal(array, right)


def test_a_learner_learns_the_same(tmp_path):
    """Through an Avalanche benchmark and the compiled engine, which asks for many samples at once."""
    source = write(tmp_path / "images", "parquet", CONTENTS["colour"])
    weights = []
    for limit in (DECODED, LIMIT):
        benchmark = make_stream("class_split", source=source, classes_per_experience=2, memory_limit=limit)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        learner = OnlineLearner(model=model, optimizer=MetaOptimize(model.parameters()))
        learner.train(benchmark.train_stream)
        learner.eval(benchmark.test_stream)
        weights.append(model[1].weight.detach().numpy())
    np.testing.assert_array_equal(*weights)


def test_indexing_as_arrays_are(tmp_path):
    images = load(write(tmp_path / "images", "parquet", CONTENTS["grey"]), memory_limit=LIMIT).train.x
    expected = IMAGES[:SPLIT, ..., None]
    mask = np.arange(SPLIT) % 3 == 0
    for which in (5, -1, slice(2, 9, 3), [4, 4, 0], np.array([], int), np.array([[1, 2], [3, 4]]), mask):
        np.testing.assert_array_equal(images[which], expected[which])
    for which in (slice(2, 9, 3), mask):
        np.testing.assert_array_equal(images.part(which)[:], expected[which])
    assert len(images) == SPLIT
    with pytest.raises(IndexError):
        images[SPLIT]


# --- when it is used -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("memory_limit", "lazy"), [(239, True), (240, False)])
def test_the_limit_is_that_of_both_splits_decoded(tmp_path, memory_limit, lazy):
    source = load(write(tmp_path / "images", "folder", CONTENTS["grey"]), memory_limit=memory_limit)
    assert isinstance(source.train.x, LazyImages) == isinstance(source.test.x, LazyImages) == lazy


def test_images_decoded_under_another_limit_are_not_used(tmp_path):
    spec = write(tmp_path / "images", "folder", CONTENTS["grey"])
    kinds = [type(load(spec, memory_limit=limit).train.x) for limit in (DECODED, LIMIT, DECODED)]
    assert kinds == [np.memmap, LazyImages, np.memmap]
    assert len(entries(tmp_path)) == 2


def test_a_limit_too_small(monkeypatch):
    monkeypatch.setattr(sources, "LEAST_MEMORY_LIMIT", 10**6)
    with pytest.raises(ValueError, match=r"^memory_limit must be at least 1000000 bytes, not 999999$"):
        load("digits", memory_limit=10**6 - 1)
    load("digits", memory_limit=10**6)


# --- reading ahead ---------------------------------------------------------------------------------------------------


@pytest.fixture
def lazy(tmp_path):
    """The training images of a source of 48 images."""
    return load(write(tmp_path / "images", "parquet", CONTENTS["grey"]), memory_limit=LIMIT).train.x


ORDER = np.random.RandomState(0).permutation(np.arange(100) % SPLIT)


def test_jumps(lazy):
    """As a checkpoint, an evaluation, and random access make them."""
    read_ahead = ReadAhead(lazy, ORDER, LIMIT)
    random = np.random.RandomState(1)
    jumps = [(start, start + size) for start, size in random.randint((0, 0), (99, 9), (200, 2))]
    runs = [(start, start + 3) for start in range(0, 99, 3)]
    for start, stop in [(50, 60), (60, 70), (69, 71), (0, 1), (0, 100), *runs, *jumps, (5, 5), *runs]:
        places = range(100)[start:stop]
        np.testing.assert_array_equal(read_ahead.read(places), lazy[ORDER[start:stop]])
    np.testing.assert_array_equal(read_ahead.read(range(100)[::-7]), lazy[ORDER[::-7]])


def settled(read_ahead, timeout=10):
    """Wait until everything that was begun is decoded; the number of images held."""
    return sum(len(chunk.result(timeout)) for chunk in read_ahead._chunks.values())


@pytest.mark.parametrize("batch", [1, 5, 30])
def test_threads_decode_what_comes_next(lazy, decoded_by, batch):
    read_ahead = ReadAhead(lazy, ORDER, LIMIT)
    for start in range(0, 90, batch):
        read_ahead.read(range(start, start + batch))
        if start + batch == 1:  # a first look, perhaps by somebody who only wants to know what the samples are like
            assert decoded_by == [(ORDER[0], "MainThread")]
            continue
        assert settled(read_ahead) == min(4, 100 - start - batch), "four images ahead"
        assert len(decoded_by) == min(start + batch + 4, 100), "each was decoded once"
        assert [row for row, _ in sorted(decoded_by)] == sorted(ORDER[: len(decoded_by)])
    assert {name for _, name in decoded_by[batch == 1 :]} == {"image decoder"}


def test_random_access_decodes_nothing_else(lazy, decoded_by):
    """As a data loader that shuffles, or that is asked for single samples."""
    read_ahead = ReadAhead(lazy, ORDER, LIMIT)
    places = [70, 3, 98, 50, 20]
    for place in places:
        read_ahead.read(range(place, place + 1))
    assert decoded_by == [(ORDER[place], "MainThread") for place in places]


def test_reading_goes_on_in_the_next_experience(tmp_path, decoded_by):
    source = write(tmp_path / "images", "parquet", CONTENTS["grey"])
    first, second = plan_stream(
        "class_split", source=source, classes_per_experience=2, memory_limit=LIMIT, samples_per_experience=20
    ).train
    first.batch(slice(0, 20))
    settled(second._read_ahead)
    assert len(decoded_by) == 24
    second.batch(slice(0, 4))
    settled(second._read_ahead)
    assert len(decoded_by) == 28


@pytest.mark.parametrize(
    ("memory_limit", "image", "chunk", "chunks_ahead"),
    [
        (10**6, (8, 8, 1), 64, 31),  # 2,048 images, of which up to 63 may be left of a chunk that was read in part
        (10**6, (32, 32, 3), 20, 3),  # a quarter of the limit is 81 images
        (2 * 10**9, (32, 32, 3), 64, 31),
        (2 * 10**9, (224, 224, 3), 53, 3),  # 32 MB are 212 images
        (10**6, (1000, 1000, 3), 1, 1),  # one image is more than that
    ],
)
def test_how_far_ahead(memory_limit, image, chunk, chunks_ahead):
    images = type("Images", (), {"shape": (10**6, *image)})
    read_ahead = ReadAhead(images, np.arange(10**6), memory_limit)
    assert (read_ahead._chunk, read_ahead._n_chunks_ahead) == (chunk, chunks_ahead)


def test_memory_is_bounded(tmp_path, monkeypatch):
    """Six times the limit is read, several streams are at different places of it, and the limit is kept."""
    limit = 10**6
    images = [encode(np.full((32, 32, 3), i % 256, np.uint8)) for i in range(2000)]
    spec = f"parquet:{write_parquet(tmp_path / 'a.parquet', images, np.arange(2000) % 10)}"
    load_source(spec, memory_limit=limit)
    tracemalloc.start()
    try:
        source = load(spec, memory_limit=limit)
        opening = tracemalloc.get_traced_memory()[1]
        images, read = source.train.x, 0
        readers = [ReadAhead(images, np.random.RandomState(i).permutation(len(images)), limit) for i in range(2)]
        for start in range(0, len(images), 20):
            read += sum(reader.read(range(start, min(start + 20, len(images)))).nbytes for reader in readers)
        reading = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read == 2 * source.train.x[:].nbytes > 2 * 5 * limit
    assert opening < limit
    assert reading < limit


def test_several_streams_at_once(lazy):
    orders = [np.random.RandomState(i).permutation(SPLIT) for i in range(3)]
    readers = [ReadAhead(lazy, order, LIMIT) for order in orders]
    for start in range(0, SPLIT, 4):
        for reader, order in zip(readers, orders, strict=True):
            np.testing.assert_array_equal(reader.read(range(start, start + 4)), lazy[order[start : start + 4]])


# --- copies and processes --------------------------------------------------------------------------------------------


@pytest.fixture
def samples(tmp_path):
    """A stream's only experience, partly read."""
    source = write(tmp_path / "images", "folder", CONTENTS["grey"])
    (part,) = plan_stream("class_split", source=source, classes_per_experience=4, memory_limit=LIMIT).train
    part.batch(slice(0, 10))
    return part


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))], ids=["copy", "pickle"]
)
def test_copies(samples, copied):
    other = copied(samples)
    for part in (samples, other, samples):
        for start in range(0, SPLIT, 5):
            steps = slice(start, start + 5)
            np.testing.assert_array_equal(part.batch(steps)[0], samples.batch(steps)[0])


def test_another_process(samples):
    """As spawned workers do, which are given a pickle."""
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).batch(slice(0, 48))[0].tobytes().hex())"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, input=pickle.dumps(samples), capture_output=True, check=True
    )
    assert found.stdout.decode().strip() == samples.batch(slice(0, 48))[0].tobytes().hex()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("n_workers", [1, 2])
def test_forked_workers(samples, n_workers):
    """Whose parent has threads already, which do not survive a fork."""
    loader = DataLoader(SampleDataset(samples), batch_size=6, num_workers=n_workers, multiprocessing_context="fork")
    inputs = np.concatenate([x.numpy() for x, _ in itertools.chain(loader, loader)])
    expected, _ = samples.batch(slice(0, SPLIT))
    np.testing.assert_array_equal(inputs, np.concatenate([expected, expected]))


ENDING = """
import sys, time
from continual_metaopt.streams import lazy_images, plan_stream, sources
sources.LEAST_MEMORY_LIMIT = 1
(part,) = plan_stream("class_split", source=sys.argv[1], classes_per_experience=4, memory_limit=64).train
part.batch(slice(0, 2))
for chunk in part._read_ahead._chunks.values():
    chunk.result()
lazy_images.decode = lambda *rest: time.sleep(1000)
part.batch(slice(2, 3))  # which is decoded, but what comes next is not
print("read")
"""


def test_threads_do_not_keep_a_process_alive(tmp_path):
    spec = write(tmp_path / "images", "parquet", CONTENTS["grey"])
    command = [sys.executable, "-c", ENDING, spec]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert (found.stdout, found.stderr) == ("read\n", "")


# --- images that are gone --------------------------------------------------------------------------------------------

DAMAGES = {
    "deleted": (lambda file: file.unlink(), "No such file"),
    "changed": (lambda file: change_but_for_size_and_times(file), "the file has changed"),
    "a pipe": (lambda file: [file.unlink(), os.mkfifo(file)], "is not a regular file"),
}


def change_but_for_size_and_times(file):
    status = file.stat()
    file.write_bytes(file.read_bytes()[::-1])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_vanish_or_change_in_the_middle(tmp_path, damage):
    """Are named, when a reader comes to them, and reading goes on when they are back."""
    spec = write(tmp_path / "images", "folder", CONTENTS["grey"])
    (part,) = plan_stream("class_split", source=spec, classes_per_experience=4, memory_limit=LIMIT).train
    expected, _ = part.batch(slice(0, SPLIT))
    lost = int(part.index[30])
    source = load_source(spec, memory_limit=LIMIT)
    file = Path(os.fsdecode(source.train.x._record(lost).split(b" ", 1)[1]))
    content = file.read_bytes()
    change, reason = DAMAGES[damage]
    change(file)
    np.testing.assert_array_equal(part.batch(slice(0, 20))[0], expected[:20])
    for _ in range(2):
        with pytest.raises(ValueError, match=reason) as error:
            part.batch(slice(20, 40))
        assert str(error.value).startswith(f"cannot read the image at {file} (")
        assert str(error.value).endswith("restore it and go on from the last checkpoint, or begin again")
    file.unlink(missing_ok=True)
    file.write_bytes(content)
    np.testing.assert_array_equal(part.batch(slice(20, 40))[0], expected[20:40])


class Collector:
    """Keeps what a learner hands over."""

    def __init__(self):
        self.n = 0

    def observe(self, observations):
        self.n += len(observations)


@pytest.mark.parametrize("engine", ["torch", "compiled"])
def test_what_was_learned_before_a_file_vanished_is_recorded(tmp_path, engine):
    spec = write(tmp_path / "images", "folder", CONTENTS["grey"])
    options = {"classes_per_experience": 2, "samples_per_experience": 20, "memory_limit": 1}
    stream = plan_stream("class_split", source=spec, **options)
    source = load_source(spec, memory_limit=1)
    record = source.train.x._record(int(stream.train[1].index[10]))
    Path(os.fsdecode(record.split(b" ", 1)[1])).unlink()
    benchmark = StreamBenchmark(stream)
    model, recorder = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), Collector()
    optimizer = MetaOptimize(model.parameters())
    learner = OnlineLearner(model=model, optimizer=optimizer, engine=engine, recorder=recorder)
    with pytest.raises(ValueError, match="cannot read the image at"):
        learner.train(benchmark.train_stream)
    assert recorder.n == learner.n_samples >= 20


# --- the index -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_is_indexed_once(tmp_path, monkeypatch, kind):
    spec = write(tmp_path / "images", kind, CONTENTS["colour"])
    expected = load(spec, memory_limit=LIMIT).train.x[:]
    monkeypatch.setattr(sources, "IndexWriter", None)  # not called again
    np.testing.assert_array_equal(load(spec, memory_limit=LIMIT).train.x[:], expected)


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_images_stay_upright_or_as_they_are_stored(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 3
    spec = write(tmp_path / "images", kind, [encode(image, exif=exif) for image in IMAGES])
    as_stored = spec.replace(":", "+as_stored:")
    for turned, source in ((True, spec), (False, as_stored), (True, spec)):
        expected = IMAGES[:SPLIT, ::-1, ::-1] if turned else IMAGES[:SPLIT]
        whole, lazy = (load(source, memory_limit=limit) for limit in (DECODED, LIMIT))
        np.testing.assert_array_equal(np.sort(whole.train.x[..., 0], axis=0), expected)
        np.testing.assert_array_equal(lazy.train.x[:], whole.train.x)
        assert lazy.content_hash == whole.content_hash


def test_an_interrupted_index_leaves_nothing(tmp_path, monkeypatch):
    spec = write(tmp_path / "images", "parquet", CONTENTS["grey"])
    decode, n_left = sources.decode, [30]

    def interrupt(*arguments):
        n_left[0] -= 1
        if not n_left[0]:
            raise KeyboardInterrupt
        return decode(*arguments)

    monkeypatch.setattr(sources, "decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(spec, memory_limit=LIMIT)
    assert not entries(tmp_path)
    assert len(load(spec, memory_limit=LIMIT).train.x) == SPLIT


def test_files_changed_while_they_are_indexed(tmp_path, monkeypatch):
    spec = write(tmp_path / "images", "folder", CONTENTS["grey"])
    divide = sources._divide

    def change(*arguments):
        os.utime(tmp_path / "images" / "train" / "a" / "00.png", ns=(0, 1))
        return divide(*arguments)

    monkeypatch.setattr(sources, "_divide", change)
    with pytest.raises(ValueError, match="files were changed while they were read; begin again when they are complete"):
        load(spec, memory_limit=LIMIT)
    assert not entries(tmp_path)


@pytest.mark.parametrize("file", ["records.bin", "offsets.npy", "records.json", "train_x.npy", "facts.json"])
def test_a_damaged_index_is_made_anew(tmp_path, file):
    spec = write(tmp_path / "images", "parquet", CONTENTS["colour"])
    expected = load(spec, memory_limit=LIMIT).train.x[:]
    (entry,) = entries(tmp_path)
    os.truncate(entry / file, (entry / file).stat().st_size - 1)
    np.testing.assert_array_equal(load(spec, memory_limit=LIMIT).train.x[:], expected)


@pytest.mark.skipif(sys.platform == "win32", reason="there, what is open cannot be deleted")
def test_a_deleted_index_goes_on_being_read(tmp_path, samples):
    """Another process may need the room for another source."""
    expected = samples.batch(slice(0, SPLIT))[0]
    for entry in entries(tmp_path):
        for file in entry.iterdir():
            file.unlink()
    np.testing.assert_array_equal(samples.batch(slice(0, SPLIT))[0], expected)


def test_unreadable_images_are_found_when_the_index_is_made(tmp_path):
    spec = write(tmp_path / "images", "parquet", CONTENTS["unreadable"])
    with pytest.raises(ValueError, match=r"^cannot read the image at train-0\.parquet, row 3 .*skip_unreadable"):
        load(spec, memory_limit=LIMIT)
    assert not entries(tmp_path)
    for _ in range(2):  # another process says so, too
        with pytest.warns(UserWarning, match="left out") as warned:
            load(spec, memory_limit=LIMIT, skip_unreadable=True)
        messages = ["2 unreadable images are left out, the first at train-0.parquet, row 3"]
        messages += ["1 unreadable images are left out, the first at test-0.parquet, row 10"]
        assert [str(warning.message) for warning in warned] == messages


def test_an_index_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CONTINUAL_METAOPT_CACHE", str(tmp_path / "file"))
    spec = write(tmp_path / "images", "parquet", CONTENTS["grey"])
    message = (
        r"cannot be indexed in '.*' \(.*\); make room there, set CONTINUAL_METAOPT_CACHE to another folder, or raise"
    )
    with pytest.warns(UserWarning, match="cannot be kept"), pytest.raises(OSError, match=message):
        load(spec, memory_limit=LIMIT)


INDEXING = """
import sys; from streams import sources
sources.LEAST_MEMORY_LIMIT = 1
index = sources._index_all
sources._index_all = lambda *rest: print("indexed") or index(*rest)
print("ready", flush=True); sys.stdin.readline()
print(sources.load_source(sys.argv[1], memory_limit=64).train.x[:].sum())
"""


def test_of_several_processes_at_once_one_indexes(tmp_path):
    spec = f"folder:{write_folder(tmp_path / 'images', coded_images(range(60)), list('abcd') * 15)}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", INDEXING, spec], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    lines = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert sorted(map(len, lines)) == [1, 2]
    assert len({found[-1] for found in lines}) == 1
