import hashlib
import json
import pickle
import re
import shutil
import struct
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat

from continual_metaopt.streams import UnknownNameError, make_stream, plan_stream, sources
from continual_metaopt.streams.sources import load_source
from tests.streams.synthetic import coded_arrays, coded_images, encode, write_folder, write_parquet

RED, BLUE, GREY = (np.full((2, 3, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255), (100, 100, 100)))


def raises_exactly(kind, message, spec, **options):
    with pytest.raises(kind) as error:
        load_source(spec, **options)
    assert str(error.value) == message


def contents(images):
    """A multiset of (bytes, class)."""
    return Counter((image.tobytes(), int(label)) for image, label in zip(images.x, images.y, strict=True))


def assert_well_formed(source, n_train, n_test, input_shape):
    channels, height, width = input_shape
    assert source.input_shape == input_shape
    for images, n in ((source.train, n_train), (source.test, n_test)):
        assert images.x.shape == (n, height, width, channels)
        assert images.x.dtype == np.uint8
        assert images.y.shape == (n,)
        assert images.y.dtype == np.int64


# --- by name ---------------------------------------------------------------------------------------------------------

KNOWN = "cifar10, cifar100, digits, emnist, fashion_mnist, folder:DIR, mnist, npz:FILE, parquet:FILE_OR_FOLDER, svhn"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("cifar-100", " Did you mean 'cifar100'?"),
        ("MNIST", " Did you mean 'mnist'?"),
        ("digit", " Did you mean 'digits'?"),
        ("parquet", ""),
        ("folder:", " Did you mean 'folder:DIR'?"),
        ("npz+resize=32:FILE", " Did you mean 'npz:FILE'?"),
        ("xyz", ""),
    ],
)
def test_unknown_source(name, suggestion):
    raises_exactly(UnknownNameError, f"unknown source '{name}'.{suggestion} Known: {KNOWN}", name)


def test_a_folder_is_not_a_source_by_itself(tmp_path):
    message = f"unknown source '{tmp_path}'. Known: {KNOWN}. For the files in this folder write folder:{tmp_path} "
    raises_exactly(UnknownNameError, message + f"(images) or parquet:{tmp_path} (tables)", str(tmp_path))


# --- digits ----------------------------------------------------------------------------------------------------------


def test_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    source = load_source("digits")
    assert_well_formed(source, 1438, 359, (1, 8, 8))
    assert source.classes == list(range(10))
    # levels 0 … 16 become bytes 0 … 255
    expected = np.array([0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255], np.uint8)
    everything = Counter(
        (expected[image.astype(int)].tobytes(), int(label))
        for image, label in zip(digits.images, digits.target, strict=True)
    )
    assert contents(source.train) + contents(source.test) == everything, "both splits together are the digits"
    assert not contents(source.train) & contents(source.test), "no image is in both"
    share = np.bincount(source.test.y) / np.bincount(digits.target)
    np.testing.assert_allclose(share, 0.2, atol=0.004)


def test_images_are_read_once_in_a_process():
    assert load_source("digits") is load_source("digits")


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_arrays_with_a_test_split(channels):
    x, y, x_test, y_test = coded_arrays(n_classes=3)
    if channels is not None:
        x, x_test = (np.repeat(part[..., None], channels, axis=3) for part in (x, x_test))
    source = load_source((x, y, x_test, y_test))
    assert_well_formed(source, 12, 3, (channels or 1, 2, 2))
    np.testing.assert_array_equal(source.train.x, x.reshape(source.train.x.shape))
    np.testing.assert_array_equal(source.test.x, x_test.reshape(source.test.x.shape))
    assert source.train.y.tolist() == y.tolist()
    assert source.test.y.tolist() == y_test.tolist()


@pytest.mark.parametrize(("per_class", "held_out"), [(1, 0), (2, 1), (10, 1), (19, 2), (20, 2)], ids=str)
def test_arrays_without_a_test_split_hold_out_a_tenth_of_each_class(per_class, held_out):
    x, y = coded_images(range(3 * per_class)), np.arange(3 * per_class) % 3
    source = load_source((x, y))
    assert np.bincount(source.train.y, minlength=3).tolist() == [per_class - held_out] * 3
    assert np.bincount(source.test.y, minlength=3).tolist() == [held_out] * 3
    numbers = (np.concatenate([source.train.x, source.test.x])[:, 0, 0, 0] // 4).tolist()
    assert sorted(numbers) == list(range(3 * per_class))
    labels = np.concatenate([source.train.y, source.test.y])
    assert labels.tolist() == [number % 3 for number in numbers]
    again = load_source((x, y))
    np.testing.assert_array_equal(again.test.x, source.test.x)


def test_labels_are_numbered_in_sorted_order():
    x = coded_images(range(4))
    source = load_source((x, [30, 0, 30, 7], x[:2], np.array([7, 0], np.int8)))
    assert source.classes == [0, 7, 30]
    assert source.train.y.tolist() == [2, 0, 2, 1]
    assert source.test.y.tolist() == [1, 0]


def test_two_classes_may_be_minus_one_and_one():
    x = coded_images(range(4))
    source = load_source((x, [1, -1, 1, -1], x[:2], [1, 1]))
    assert (source.classes, source.test.y.tolist()) == ([-1, 1], [1, 1])


X, Y = coded_images(range(6)), np.arange(6) % 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((X,), "a source of arrays is (x, y) or (x, y, x_test, y_test), not 1 things"),
        ((X, Y, X), "a source of arrays is (x, y) or (x, y, x_test, y_test), not 3 things"),
        (
            (X / 255, Y),
            "images must be uint8 of shape [N, H, W] or [N, H, W, C], not float64 of shape (6, 2, 2)",
        ),
        (
            (X.reshape(6, 4), Y),
            "images must be uint8 of shape [N, H, W] or [N, H, W, C], not uint8 of shape (6, 4)",
        ),
        ((X, Y[:5]), "labels must be 6 integers, one per image, not int64 of shape (5,)"),
        ((X, Y[:, None]), "labels must be 6 integers, one per image, not int64 of shape (6, 1)"),
        ((X, Y.astype(float)), "labels must be 6 integers, one per image, not float64 of shape (6,)"),
        ((X, Y, X, Y[:5]), "labels must be 6 integers, one per image, not int64 of shape (5,)"),
        ((X, Y, X[:, :1], Y), "training images have shape (2, 2, 1), test images (1, 2, 1)"),
        ((X, Y, X, Y + 1), "the test split has classes that the training split lacks: [2]"),
        *(
            (
                (np.zeros(shape, np.uint8), np.zeros(shape[0], int)),
                f"images must be of shape [N, H, W, C]; {shape} seems to be [N, C, H, W], so give "
                "x.transpose(0, 2, 3, 1) instead of x",
            )
            for shape in ((9, 3, 32, 32), (9, 1, 28, 28), (9, 3, 4, 4), (9, 4, 16, 16), (9, 3, 5, 2))
        ),
        *(
            (
                arrays,
                f"the {split} split has labels below 0, {below}, which usually mean that a label is not known; leave "
                "its samples out, or number the classes from 0",
            )
            for arrays, split, below in (
                ((X, Y - 1), "training", [-1]),
                ((X, [0, 1, -100, 2, -1, 1]), "training", [-100, -1]),
                ((X, Y, X, Y - 1), "test", [-1]),
                ((X, [-1, 1, 0, 0, 1, 1]), "training", [-1]),
            )
        ),
    ],
)
def test_arrays_that_do_not_fit(arrays, message):
    raises_exactly(ValueError, message, arrays)


@pytest.mark.parametrize("shape", [(9, 32, 32, 3), (9, 3, 32, 3), (9, 1, 1, 1), (9, 32, 32, 4), (9, 8, 8, 13)])
def test_channels_are_the_last(shape):
    source = load_source((np.zeros(shape, np.uint8), np.zeros(shape[0], int)))
    assert source.input_shape == (shape[3], *shape[1:3])


@pytest.mark.parametrize("split", ["train", "test"])
def test_arrays_need_not_be_plain_memory(split):
    """Views with negative strides, and arrays that may not be written, as of a memory-mapped file."""
    flipped, locked = X[:, ::-1], X.copy()
    locked.flags.writeable = False
    for x in (flipped, locked):
        arrays = (x, Y, X, Y) if split == "train" else (X, Y, x, Y)
        benchmark = make_stream("permuted_inputs", source=arrays, n_experiences=1)
        assert len(list(getattr(benchmark, f"{split}_stream")[0].dataset)) == 6
        np.testing.assert_array_equal(getattr(load_source(arrays), split).x[..., 0], x)


# --- parquet ---------------------------------------------------------------------------------------------------------

ENCODED = [encode(image) for image in coded_images(range(20))]
LABELS = np.arange(20) % 4


def parquet(path, **options):
    return load_source(f"parquet:{path}", **options)


def test_one_parquet_file(tmp_path):
    """Whatever its name is."""
    for name in ("data.parquet", "test.parquet"):
        source = parquet(write_parquet(tmp_path / name, ENCODED, LABELS))
        assert_well_formed(source, 16, 4, (1, 2, 2))
        assert np.bincount(source.test.y).tolist() == [1, 1, 1, 1], "a tenth of five, but at least one"
        expected = {(image.tobytes(), int(y)) for image, y in zip(coded_images(range(20)), LABELS, strict=True)}
        assert set(contents(source.train) + contents(source.test)) == expected


def test_a_folder_of_shards(tmp_path):
    """The names of files and splits are looked at in ``test_source_files``."""
    images = coded_images(range(20))
    for name, rows in (("train-0", slice(0, 7)), ("train-1", slice(7, 16)), ("validation", slice(16, 20))):
        write_parquet(tmp_path / f"{name}.parquet", ENCODED[rows], LABELS[rows])
    source = parquet(tmp_path)
    np.testing.assert_array_equal(source.train.x[..., 0], images[:16])
    np.testing.assert_array_equal(source.test.x[..., 0], images[16:])
    assert source.train.y.tolist() == LABELS[:16].tolist()
    assert source.test.y.tolist() == LABELS[16:].tolist()


def test_a_shard_of_several_groups_of_rows(tmp_path):
    """Which are read in parts that divide neither."""
    images = [encode(np.full((2, 2), i % 256, np.uint8)) for i in range(700)]
    path = write_parquet(tmp_path / "a.parquet", images, np.arange(700) // 256)
    pq.write_table(pq.read_table(path), tmp_path / "groups.parquet", row_group_size=300)
    for file in ("a.parquet", "groups.parquet"):
        source = parquet(tmp_path / file)
        everything = contents(source.train) + contents(source.test)
        assert everything == Counter((bytes([i % 256] * 4), i // 256) for i in range(700))
    images[650] = b"damaged"
    damaged = write_parquet(tmp_path / "damaged.parquet", images, np.arange(700) // 256)
    with pytest.raises(ValueError, match=r"^cannot read the image at damaged\.parquet, row 650 "):
        parquet(damaged)


def test_a_group_of_rows_is_not_read_at_once(tmp_path):
    """It may be a whole shard."""
    images = np.random.RandomState(0).bytes(30 * 10**6)
    path = write_parquet(
        tmp_path / "a.parquet", [images[i : i + 5000] for i in range(0, len(images), 5000)], np.arange(6000)
    )
    assert pq.read_metadata(path).num_row_groups == 1
    before, most = pa.total_allocated_bytes(), 0
    for _, content, _ in sources._parquet_rows([path]):
        assert len(content) == 5000
        most = max(most, pa.total_allocated_bytes() - before)
    assert 0 < most < len(images) / 1.5


def two_shards(path):
    for shard in range(2):
        rows = slice(10 * shard, 10 * shard + 10)
        write_parquet(path / f"train-{shard}.parquet", ENCODED[rows], LABELS[rows])
    return f"parquet:{path}"


def one_shard(path, images=ENCODED, labels=LABELS):
    return f"parquet:{write_parquet(path / 'a.parquet', images, labels)}"


def compressed_otherwise(path):
    """The same pixels: fingerprints must not rest on the decoder."""
    return one_shard(path, [encode(coded_images([0])[0], compress_level=0), *ENCODED[1:]])


def image_folder(path):
    return f"folder:{write_folder(path, coded_images(range(20)), CLASSES)}"


@pytest.mark.parametrize(
    ("make", "other", "same"),
    [
        (one_shard, one_shard, True),
        (one_shard, two_shards, True),
        (image_folder, image_folder, True),
        (one_shard, compressed_otherwise, False),
        (one_shard, lambda path: one_shard(path, labels=10 * LABELS), False),
    ],
    ids=["elsewhere", "divided otherwise", "a folder elsewhere", "other stored bytes", "other labels"],
)
def test_what_enters_the_fingerprint(tmp_path, make, other, same):
    specs = make(tmp_path / "here"), other(tmp_path / "there")
    infos = [plan_stream("class_split", source=spec, classes_per_experience=2, data_root=spec).info for spec in specs]
    assert (infos[0].fingerprint == infos[1].fingerprint) is same
    assert (infos[0].source_hash == infos[1].source_hash) is same


@pytest.mark.parametrize("image_column", ["image", "img"])
@pytest.mark.parametrize("label_column", ["label", "labels", "fine_label"])
def test_column_names(tmp_path, image_column, label_column):
    more = {"path": [f"{i}.png" for i in range(20)], "score": np.linspace(0, 1, 20)}
    path = write_parquet(tmp_path / "a.parquet", ENCODED, LABELS, image_column, label_column, **more)
    assert parquet(path).classes == [0, 1, 2, 3]


def test_fine_labels_are_preferred(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", ENCODED, LABELS // 2, "img", "coarse_label", fine_label=LABELS, label=LABELS // 4
    )
    assert parquet(path).classes == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ({"label": [0, 1]}, "label"),
        ({"image": [{"bytes": b"", "path": ""}] * 2}, "image"),
        ({"image": [{"bytes": b"", "path": ""}] * 2, "id": [0, 1]}, "image, id"),
        ({"image": [{"bytes": b"", "path": ""}] * 2, "width": [8, 8], "text": ["a", "b"]}, "image, width, text"),
        ({"image": [b"", b""], "label": [0, 1]}, "image, label"),
        ({"image": [{"bytes": "", "path": ""}] * 2, "label": [0, 1]}, "image, label"),
        ({"mask": [{"bytes": b""}] * 2, "scan": [{"bytes": b""}] * 2, "label": [0, 1]}, "mask, scan, label"),
    ],
    ids=["no image", "no label", "numbers", "sizes", "bytes without a struct", "text for bytes", "which image"],
)
def test_other_layouts(tmp_path, table, found):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(table), path)
    message = (
        f"'{path}' is not in Hugging Face's image layout: expected a column {{bytes, path}} of images (named image or "
        f"img if there are several) and one of labels named one of fine_label, label, labels, found {found}"
    )
    raises_exactly(ValueError, message, f"parquet:{path}")


@pytest.mark.parametrize(
    ("labels", "kind"),
    [(["cat", "dog"], "string"), ([0.0, 1.0], "double"), ([True, False], "bool"), ([[0], [1]], "list<element: int64>")],
)
def test_labels_that_are_no_integers(tmp_path, labels, kind):
    path = write_parquet(tmp_path / "a.parquet", ENCODED[:2], labels, id=[0, 1])
    message = f"the labels of '{path}', in the column 'label', are {kind}, not integers; number the classes"
    raises_exactly(ValueError, message, f"parquet:{path}")


def test_of_several_images_the_one_called_so(tmp_path):
    masks = pa.array([{"bytes": encode(RED), "path": ""}] * 20)
    path = write_parquet(tmp_path / "a.parquet", ENCODED, LABELS)
    pq.write_table(pq.read_table(path).add_column(0, "mask", masks), path)
    assert parquet(path).input_shape == (1, 2, 2)


def test_labels_beyond_the_names_that_the_file_gives(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ENCODED, LABELS)
    described = {"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}
    table = pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps(described)})
    pq.write_table(table, path)
    message = (
        "a.parquet, row 3 has the label 3, but by the file's own description the column 'label' has the labels 0 to 2"
    )
    raises_exactly(ValueError, message, f"parquet:{path}")
    for other in ("[" * 10**5, "[]", '{"info": {"features": {"label": {"_type": "Value"}}}}', "\xff"):
        pq.write_table(table.replace_schema_metadata({"huggingface": other}), path)
        sources._load_named.cache_clear()
        assert parquet(path).classes == [0, 1, 2, 3]


def test_test_labels_that_are_not_public(tmp_path):
    """As of competitions: what to do is told."""
    for name, labels in (("train", LABELS), ("validation", LABELS), ("test", np.full(20, -1))):
        write_parquet(tmp_path / f"{name}.parquet", ENCODED, labels)
    message = (
        "the test split has labels below 0, [-1], which usually mean that a label is not known; take the test files "
        "away, and the test split is validation.parquet"
    )
    raises_exactly(ValueError, message, f"parquet:{tmp_path}")
    (tmp_path / "test.parquet").unlink()
    assert len(parquet(tmp_path).test.y) == 20


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 146946961\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, ": it is a pointer of Git LFS in place of the file; fetch the file with 'git lfs pull'"),
        (b"", " (Parquet file size is 0 bytes); it is damaged or not a parquet file"),
    ],
)
def test_shards_that_are_something_else(tmp_path, content, message):
    write_parquet(tmp_path / "train-0.parquet", ENCODED, LABELS)
    shard = tmp_path / "train-1.parquet"
    shard.write_bytes(content)
    raises_exactly(ValueError, f"cannot read '{shard}'{message}", f"parquet:{tmp_path}")


def test_more_rows_than_bytes(tmp_path):
    """As somebody may make them who wants to fill a disk: a page of equal images takes a few bytes."""
    images = pa.DictionaryArray.from_arrays(pa.array(np.zeros(200_000, np.int32)), pa.array([ENCODED[0]]))
    column = pa.StructArray.from_arrays([images.cast(pa.binary())], ["bytes"])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": column, "label": np.zeros(200_000, int)}), path)
    assert path.stat().st_size < 20_000
    raises_exactly(ValueError, f"'{path}' says that it holds 200,000 images, more than its bytes", f"parquet:{path}")


@pytest.mark.parametrize("where", [20, 200, 2000], ids=["first page", "later page", "end"])
def test_damaged_shards_are_named(tmp_path, where):
    images = [encode(np.random.RandomState(i).randint(0, 256, (8, 8)).astype(np.uint8)) for i in range(20)]
    path = write_parquet(tmp_path / "a.parquet", images, LABELS)
    content = bytearray(path.read_bytes())
    content[where : where + 200] = b"\xff" * len(content[where : where + 200])
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet"):
        parquet(path)


def test_rows_without_a_label(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ENCODED[:4], pa.array([0, 1, None, 1], pa.int64()))
    raises_exactly(ValueError, "a.parquet, row 2 has no label in the column 'label'", f"parquet:{path}")


def test_parquet_not_there(tmp_path):
    nowhere = tmp_path / "nowhere"
    message = f"no parquet file or folder at '{nowhere}'; give the path of a .parquet file or a folder"
    raises_exactly(FileNotFoundError, message, f"parquet:{nowhere}")
    raises_exactly(FileNotFoundError, f"the folder '{tmp_path}' holds no .parquet file", f"parquet:{tmp_path}")
    write_parquet(tmp_path / "test-0.parquet", ENCODED, LABELS)
    message = f"the folder '{tmp_path}' holds test shards only; the names of training shards: train-*"
    raises_exactly(FileNotFoundError, message, f"parquet:{tmp_path}")


# --- image folders ---------------------------------------------------------------------------------------------------

CLASSES = [("ant", "bee", "cow", "dog")[label] for label in LABELS]


def folder(path, **options):
    return load_source(f"folder:{path}", **options)


def test_folder_of_classes(tmp_path):
    images = coded_images(range(20))
    source = folder(write_folder(tmp_path, images, CLASSES))
    assert_well_formed(source, 16, 4, (1, 2, 2))
    assert source.classes == ["ant", "bee", "cow", "dog"]
    expected = Counter((image.tobytes(), int(label)) for image, label in zip(images, LABELS, strict=True))
    assert contents(source.train) + contents(source.test) == expected


def test_folder_with_splits(tmp_path):
    images = coded_images(range(20))
    write_folder(tmp_path / "train", images[:16], CLASSES[:16])
    write_folder(tmp_path / "test", images[16:], CLASSES[16:])
    source = folder(tmp_path)
    assert source.classes == ["ant", "bee", "cow", "dog"]
    order = sorted(range(16), key=lambda i: (CLASSES[i], i))
    np.testing.assert_array_equal(source.train.x[..., 0], images[:16][order])
    assert source.train.y.tolist() == LABELS[:16][order].tolist()
    np.testing.assert_array_equal(source.test.x[..., 0], images[16:])
    assert source.test.y.tolist() == [0, 1, 2, 3]


def test_deeper_folders_belong_to_their_class_and_other_files_are_ignored(tmp_path):
    """As in Tiny ImageNet, whose classes have a folder "images" beside a list of boxes."""
    for name in ("ant", "bee"):
        write_folder(tmp_path / name, coded_images(range(3)), ["images"] * 3)
        (tmp_path / name / "boxes.txt").write_text("no image")
    (tmp_path / "readme.png").write_text("not in the folder of a class")
    with pytest.warns(UserWarning, match="^1 images are left out, since they lie in no folder of a class; the first"):
        source = folder(tmp_path)
    assert source.classes == ["ant", "bee"]
    assert len(source.train.y) + len(source.test.y) == 6


@pytest.mark.parametrize("suffix", ["JPG", "bmp", "gif", "webp", "tiff"])
def test_image_formats(tmp_path, suffix):
    for name, colour in (("black", 0), ("white", 255)):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4), colour).save(tmp_path / name / f"image.{suffix}")
    source = folder(tmp_path)
    assert source.classes == ["black", "white"]
    assert source.train.x.max(axis=(1, 2, 3)).tolist() == [0, 255]


def test_folder_not_there(tmp_path):
    raises_exactly(FileNotFoundError, f"no image folder at '{tmp_path / 'a'}'", f"folder:{tmp_path / 'a'}")
    message = f"no images in '{tmp_path}'; expected CLASS/IMAGE or train/CLASS/IMAGE below it"
    raises_exactly(FileNotFoundError, message, f"folder:{tmp_path}")


# --- what images may be like -----------------------------------------------------------------------------------------


def save(path, kind, images):
    """The same images as a folder or as a parquet file; returns the source and where messages say each image is."""
    if kind == "parquet":
        write_parquet(path / "train.parquet", images, np.arange(len(images)) % 2)
        return f"parquet:{path / 'train.parquet'}", [f"train.parquet, row {row}" for row in range(len(images))]
    files = [path / "ab"[i % 2] / f"{i}.png" for i in range(len(images))]
    for file, image in zip(files, images, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image)
    return f"folder:{path}", [str(file) for file in files]


both_kinds = pytest.mark.parametrize("kind", ["parquet", "folder"])


@both_kinds
def test_grey_and_colour_mixed(tmp_path, kind):
    grey = coded_images([3])[0]
    images = [encode(grey), encode(grey), encode(RED[:, :2]), encode(BLUE[:, :2])]
    spec, _ = save(tmp_path, kind, images)
    source = load_source(spec)
    assert source.input_shape == (3, 2, 2)
    found = set(contents(source.train) + contents(source.test))
    assert found == {
        (np.stack([grey] * 3, axis=-1).tobytes(), 0),
        (np.stack([grey] * 3, axis=-1).tobytes(), 1),
        (RED[:, :2].tobytes(), 0),
        (BLUE[:, :2].tobytes(), 1),
    }


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY).convert("L"), GREY[..., :1]),
        (Image.fromarray(RED), RED),
        (Image.fromarray(RED).convert("RGBA"), RED),
        (Image.fromarray(RED).convert("P", palette=Image.Palette.ADAPTIVE), RED),
        (Image.fromarray(GREY).convert("LA"), GREY),
        (Image.fromarray(np.array([[0, 255, 255], [0, 0, 255]], np.uint8)).convert("1"), None),
    ],
    ids=["grey", "colour", "opacity", "palette", "grey with opacity", "bits"],
)
def test_kinds_of_pixels(tmp_path, image, expected):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "image.png")
    if expected is None:
        expected = np.array([[0, 255, 255], [0, 0, 255]], np.uint8)[..., None]
    np.testing.assert_array_equal(load_source(f"folder:{tmp_path}").train.x, np.stack([expected] * 2))


@both_kinds
def test_deep_pixels_are_refused_rather_than_clipped(tmp_path, kind):
    deep = encode((np.arange(4).reshape(2, 2) * 20000).astype(np.uint16))
    spec, places = save(tmp_path, kind, [*ENCODED[:4], deep])
    with pytest.raises(ValueError, match="deeper than 8 bits; convert it to 8 bits") as error:
        load_source(spec)
    assert str(error.value).startswith(f"cannot read the image at {places[4]} (its pixels, of mode I")


@both_kinds
def test_mixed_sizes(tmp_path, kind):
    images = [*ENCODED[:4], encode(np.zeros((5, 7), np.uint8)), encode(np.zeros((9, 3), np.uint8))]
    spec, places = save(tmp_path, kind, images)
    with pytest.raises(ValueError, match=r"^the images differ in size: .*; to resize them, write for example ") as e:
        load_source(spec)
    assert str(e.value).endswith(f"{kind}+resize=32: at the beginning of the source, instead of {kind}:")
    assert load_source(spec.replace(":", "+resize=3:", 1)).input_shape == (1, 3, 3)
    sizes = dict(re.findall(r"(\d+×\d+) \(([^)]*)\)", str(e.value)))
    assert set(sizes) == {"2×2", "5×7", "9×3"}
    assert sizes["2×2"] in places[:4]
    assert (sizes["5×7"], sizes["9×3"]) == (places[4], places[5])


def test_mixed_sizes_between_the_splits(tmp_path):
    write_parquet(tmp_path / "train.parquet", ENCODED, LABELS)
    write_parquet(tmp_path / "test.parquet", [encode(np.zeros((3, 2), np.uint8))], [0])
    with pytest.raises(ValueError, match=r"differ in size: 2×2 \(train.parquet, row \d+\), 3×2 \(test.parquet, row 0"):
        parquet(tmp_path)


def test_at_most_three_sizes_are_listed(tmp_path):
    images = [encode(np.zeros((1, n), np.uint8)) for n in range(1, 8)]
    spec, _ = save(tmp_path, "folder", images)
    with pytest.raises(ValueError, match="differ in size") as error:
        load_source(spec)
    assert str(error.value).count("×") == 3


@both_kinds
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path, kind, file_format, orientation):
    """By EXIF data, as viewers show them; a source that says so has them as they are stored."""
    stored = np.zeros((16, 16), np.uint8)
    stored[:8, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    spec, _ = save(tmp_path, kind, [encode(stored, file_format, exif=exif)] * 4)
    seen = load_source(spec).train.x[0, ..., 0] > 127
    turned = [stored, stored[:, ::-1], stored[::-1, ::-1], stored[::-1], stored.T]
    turned += [np.rot90(stored, -1), stored[::-1, ::-1].T, np.rot90(stored)]
    np.testing.assert_array_equal(seen, turned[orientation - 1] > 127)
    as_stored = spec.replace(":", "+as_stored:", 1)
    np.testing.assert_array_equal(load_source(as_stored).train.x[0, ..., 0] > 127, stored > 127)
    hashes = [load_source(s).content_hash for s in (spec, as_stored)]
    assert (hashes[0] == hashes[1]) == (orientation == 1)
    fingerprints = {
        plan_stream("permuted_inputs", source=s, n_experiences=1).info.fingerprint for s in (spec, as_stored)
    }
    assert len(fingerprints) == len(set(hashes))


def plain(image):
    """An image in a format that needs no encoder."""
    height, width, *colour = image.shape
    return f"P{6 if colour else 5} {width} {height} 255 ".encode() + image.tobytes()


RANDOM = np.random.RandomState(0)
GREY_WIDE = RANDOM.randint(256, size=(12, 20), dtype=np.uint8)
RGB_TALL = RANDOM.randint(256, size=(23, 10, 3), dtype=np.uint8)
SMALL = RANDOM.randint(256, size=(3, 4, 3), dtype=np.uint8)


def resized(spec, size):
    return load_source(spec.replace(":", f"+resize={size}:", 1))


@pytest.mark.parametrize("image", [GREY_WIDE, GREY_WIDE.T, RGB_TALL, RGB_TALL.swapaxes(0, 1), RGB_TALL[:10]])
@pytest.mark.parametrize("size", [1, 5, 10, 12, 30])
def test_resized_as_if_scaled_and_then_cut(tmp_path, image, size):
    """Portraits lie on their side meanwhile; Pillow's versions scale them as they stand in different ways."""
    spec, _ = save(tmp_path, "folder", [plain(np.ascontiguousarray(image))] * 4)
    is_portrait = image.shape[0] > image.shape[1]
    lying = np.ascontiguousarray(image.swapaxes(0, 1) if is_portrait else image)
    height, width = lying.shape[:2]
    scaled_width = width * size // height
    box = (0, 0, scaled_width * height / size, height)  # as much as becomes whole pixels
    scaled = np.asarray(Image.fromarray(lying).resize((scaled_width, size), Image.Resampling.BICUBIC, box))
    expected = scaled[:, (scaled_width - size) // 2 :][:, :size].reshape(size, size, -1)
    if is_portrait:
        expected = expected.swapaxes(0, 1)
    found = resized(spec, size).train.x[0]
    assert abs(found.astype(int) - expected).max() <= 1  # the places of pixels are kept in 32 bits


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA"])
def test_all_kinds_of_pixels_are_resized_smoothly(tmp_path, mode):
    image = Image.fromarray(RED[:, :2]).convert(mode)
    image.putpixel((0, 0), 0)
    spec, _ = save(tmp_path, "folder", [encode(np.asarray(image))] * 4)
    assert len(np.unique(resized(spec, 8).train.x)) > 4


def test_a_very_long_image_is_resized(tmp_path):
    spec, _ = save(tmp_path, "folder", [plain(np.full((1, 10**6), 7, np.uint8))] * 4)
    assert (resized(spec, 1024).train.x == 7).all()


@both_kinds
def test_resized_images_and_fingerprints_are_the_same_everywhere(tmp_path, kind):
    """If a new version of Pillow gives other pixels, say so in docs/streams.md."""
    spec, _ = save(tmp_path, kind, [plain(image) for image in (GREY_WIDE, RGB_TALL, SMALL, GREY_WIDE.T.copy())])
    source = resized(spec, 6)
    pixels = sorted(image.tobytes() for split in (source.train, source.test) for image in split.x)
    assert hashlib.sha256(b"".join(pixels)).hexdigest()[:16] == "4eae50ca6f34ca70"
    assert source.content_hash[:16] == {"parquet": "bbfc1ed6d81009a4", "folder": "262339812dea8865"}[kind]
    assert resized(spec, 5).content_hash != source.content_hash


@both_kinds
def test_a_size_that_all_images_have_changes_nothing(tmp_path, kind):
    spec, _ = save(tmp_path, kind, ENCODED)
    assert resized(spec, 2).content_hash == load_source(spec).content_hash
    assert resized(spec, 1).content_hash != load_source(spec).content_hash


@pytest.mark.parametrize("options", ["resize=32+as_stored", "as_stored+resize=32"])
def test_images_are_turned_before_they_are_resized(tmp_path, options):
    """An odd number of pixels is left over, so that the middle is not the same from both ends."""
    exif = Image.Exif()
    exif[0x0112] = 3
    stored = RANDOM.randint(256, size=(32, 35), dtype=np.uint8)
    spec, _ = save(tmp_path, "folder", [encode(stored, "PNG", exif=exif)] * 4)
    as_stored = load_source(spec.replace(":", f"+{options}:", 1))
    np.testing.assert_array_equal(as_stored.train.x[0, ..., 0], stored[:, 1:33])
    upright = resized(spec, 32)
    np.testing.assert_array_equal(upright.train.x[0, ..., 0], stored[::-1, ::-1][:, 1:33])
    assert upright.content_hash != as_stored.content_hash


@both_kinds
@pytest.mark.parametrize(
    "option",
    [
        "resize",
        "resize=",
        "resize=0",
        "resize=-1",
        "resize=1025",
        "resize=a",
        "resize=3.5",
        "resize=٣",
        "resize=5+resize=6",
        "small",
    ],
)
def test_options_of_files_that_are_refused(tmp_path, kind, option):
    message = (
        "the options of a source of files are as_stored and resize=SIZE, where SIZE is a whole number from 1 to 1024, "
        f"not '{option}'"
    )
    raises_exactly(ValueError, message, f"{kind}+{option}:{tmp_path}")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@both_kinds
def test_damaged_exif_data_is_no_damaged_image(tmp_path, kind):
    grey = Image.fromarray(GREY[..., 0])
    grey.save(tmp_path / "image.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    spec, _ = save(tmp_path / "images", kind, [(tmp_path / "image.jpg").read_bytes()] * 4)
    assert load_source(spec).input_shape == (1, 2, 3)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"
DAMAGED = {
    "PostScript": EPS,
    "pointer of Git LFS": POINTER,
    "truncated": encode(np.arange(40000, dtype=np.uint32).astype(np.uint8).reshape(200, 200))[:400],
    "no image": b"this is no image",
    "empty": b"",
}


@both_kinds
@pytest.mark.parametrize("damage", DAMAGED)
def test_unreadable_images(tmp_path, kind, damage):
    images = [*ENCODED[:5], DAMAGED[damage], *ENCODED[6:10]]
    spec, places = save(tmp_path, kind, images)
    reasons = {
        "truncated": ".*truncated.*",
        "pointer of Git LFS": "it is a pointer of Git LFS in place of the file; .*",
    }
    reason = reasons.get(damage, "it is none of PNG, JPEG, BMP, GIF, WEBP, TIFF, PPM")
    advice = rf" \({reason}\); with the stream's option skip_unreadable, such images are left out$"
    with pytest.raises(ValueError, match=advice) as error:
        load_source(spec)
    assert str(error.value).startswith(f"cannot read the image at {places[5]} (")

    with pytest.warns(UserWarning, match=rf"^1 unreadable images are left out, the first at {re.escape(places[5])}$"):
        source = load_source(spec, skip_unreadable=True)
    expected = Counter((image.tobytes(), i % 2) for i, image in enumerate(coded_images(range(10))) if i != 5)
    assert contents(source.train) + contents(source.test) == expected
    benchmark = make_stream("class_split", source=spec, classes_per_experience=2, skip_unreadable=True)
    n_test = sum(len(experience.dataset) for experience in benchmark.test_stream)
    assert benchmark.info.for_learner.n_samples + n_test == 9


def test_rows_without_an_image(tmp_path):
    """Hugging Face's layout may refer to a file by its path alone."""
    path = write_parquet(tmp_path / "a.parquet", [*ENCODED[:5], None], LABELS[:6])
    with pytest.raises(ValueError, match=r"^cannot read the image at a\.parquet, row 5 \("):
        parquet(path)
    with pytest.warns(UserWarning, match="1 unreadable images are left out, the first at a.parquet, row 5"):
        source = parquet(path, skip_unreadable=True)
    assert len(source.train.y) + len(source.test.y) == 5


@both_kinds
def test_nothing_but_unreadable_images(tmp_path, kind):
    spec, _ = save(tmp_path, kind, [b"no", b"nor"])
    with pytest.warns(UserWarning, match="2 unreadable images are left out"):
        raises_exactly(ValueError, "not one of the images could be read", spec, skip_unreadable=True)


@both_kinds
def test_test_classes_that_training_lacks(tmp_path, kind):
    images = coded_images(range(20))
    if kind == "parquet":
        write_parquet(tmp_path / "train.parquet", ENCODED[:16], LABELS[:16])
        write_parquet(tmp_path / "test.parquet", ENCODED[16:], LABELS[16:] + 2)
        unknown = [4, 5]
    else:
        write_folder(tmp_path / "train", images[:16], CLASSES[:16])
        write_folder(tmp_path / "test", images[16:], ["ant", "elk", "bee", "fox"])
        unknown = ["elk", "fox"]
    message = f"the test split has classes that the training split lacks: {unknown}"
    raises_exactly(ValueError, message, f"{kind}:{tmp_path}")


# --- torchvision -----------------------------------------------------------------------------------------------------


def idx(values):
    """The format of MNIST's files: magic number (8 for bytes, and the number of dimensions), sizes, values."""
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return struct.pack(">HBB", 0, 8, values.ndim) + sizes + values.astype(np.uint8).tobytes()


def mnist_images(n):
    return (np.arange(n * 28 * 28) * 7 % 256).astype(np.uint8).reshape(n, 28, 28)


def write_mnist(root, folder, prefixes):
    (root / folder).mkdir(parents=True)
    for prefix, (n, labels) in zip(prefixes, ((6, [5, 0, 4, 5, 0, 4]), (2, [4, 0])), strict=True):
        (root / folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(mnist_images(n)))
        (root / folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.array(labels)))
    return [5, 0, 4, 5, 0, 4], [4, 0], (1, 28, 28)


def cifar_rows(n):
    """Images as in CIFAR's files: for each, 1024 red bytes, 1024 green, 1024 blue."""
    return (np.arange(n * 3072) * 5 % 251).astype(np.uint8).reshape(n, 3072)


def write_pickles(path, **files):
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name.replace("__", ".")).write_bytes(pickle.dumps(content))


def write_cifar100(root):
    write_pickles(
        root / "cifar-100-python",
        train={"data": cifar_rows(6), "fine_labels": [9, 3, 3, 9, 99, 99], "coarse_labels": [0, 1, 1, 0, 2, 2]},
        test={"data": cifar_rows(2), "fine_labels": [99, 3], "coarse_labels": [2, 1]},
        meta={"fine_label_names": [f"class {i}" for i in range(100)], "coarse_label_names": []},
    )
    return [9, 3, 3, 9, 99, 99], [99, 3], (3, 32, 32)


def write_cifar10(root):
    batches = {f"data_batch_{i + 1}": {"data": cifar_rows(6)[i : i + 1], "labels": [i % 3]} for i in range(4)}
    batches["data_batch_5"] = {"data": cifar_rows(6)[4:], "labels": [1, 2]}
    write_pickles(
        root / "cifar-10-batches-py",
        **batches,
        test_batch={"data": cifar_rows(2), "labels": [2, 0]},
        batches__meta={"label_names": [f"class {i}" for i in range(10)]},
    )
    return [0, 1, 2, 0, 1, 2], [2, 0], (3, 32, 32)


def write_svhn(root):
    root.mkdir(exist_ok=True)
    for split, labels in (("train", [1, 2, 10, 1, 2, 10]), ("test", [10, 1])):  # a digit 0 is labelled 10
        x = cifar_rows(len(labels)).reshape(-1, 3, 32, 32).transpose(2, 3, 1, 0)
        savemat(root / f"{split}_32x32.mat", {"X": x, "y": np.array(labels)[:, None]})
    return [1, 2, 0, 1, 2, 0], [0, 1], (3, 32, 32)


WRITERS = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "mnist": lambda root: write_mnist(root, "MNIST/raw", ("train", "t10k")),
    "fashion_mnist": lambda root: write_mnist(root, "FashionMNIST/raw", ("train", "t10k")),
    "emnist": lambda root: write_mnist(root, "EMNIST/raw", ("emnist-balanced-train", "emnist-balanced-test")),
    "svhn": write_svhn,
}
PLACES = {
    "cifar10": ("cifar-10-batches-py/", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "cifar100": ("cifar-100-python/", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "mnist": ("MNIST/raw/", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "fashion_mnist": ("FashionMNIST/raw/", "https://github.com/zalandoresearch/fashion-mnist"),
    "emnist": ("EMNIST/raw/", "https://www.nist.gov/itl/products-and-services/emnist-dataset"),
    "svhn": ("train_32x32.mat, and test_32x32.mat", "http://ufldl.stanford.edu/housenumbers/"),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whatever would reach for the network finds none."""
    tried = []

    def urlopen(request, *_, **__):
        tried.append(getattr(request, "full_url", request))
        raise URLError("there is no network here")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return tried


@pytest.fixture
def any_checksum(monkeypatch):
    """Accept CIFAR files of any content: the files of these tests are tiny."""
    for module in (torchvision.datasets.cifar, torchvision.datasets.svhn):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())


@pytest.mark.parametrize("name", WRITERS)
def test_torchvision_files(tmp_path, any_checksum, no_network, name):
    labels, test_labels, input_shape = WRITERS[name](tmp_path)
    source = load_source(name, data_root=tmp_path)
    assert_well_formed(source, 6, 2, input_shape)
    assert source.classes == sorted(set(labels))
    assert [source.classes[y] for y in source.train.y] == labels
    assert [source.classes[y] for y in source.test.y] == test_labels
    for images, n in ((source.train, 6), (source.test, 2)):
        if name in ("cifar10", "cifar100", "svhn"):  # channel, row, column in the file
            expected = cifar_rows(n).reshape(n, 3, 32, 32).transpose(0, 2, 3, 1)
        else:
            expected = mnist_images(n)[..., None]
        np.testing.assert_array_equal(images.x, expected)
    assert not no_network, "files that are there are not downloaded"


@pytest.mark.parametrize("name", ["cifar100", "mnist"])
def test_files_read_once_need_no_torch_afterwards(tmp_path, any_checksum, name):
    """Another process takes the images from the cache."""
    WRITERS[name](tmp_path)
    fingerprint = plan_stream("permuted_inputs", source=name, data_root=tmp_path).info.fingerprint
    code = (
        "import sys; from streams import plan_stream\n"
        "print(plan_stream('permuted_inputs', source=sys.argv[1], data_root=sys.argv[2]).info.fingerprint)\n"
        "print({'torch', 'torchvision', 'avalanche'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code, name, str(tmp_path)]
    found = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert found.stdout.split() == [fingerprint, "set()"]


@pytest.mark.parametrize("name", ["cifar100", "mnist"])
def test_data_root_does_not_enter_the_fingerprint(tmp_path, any_checksum, name):
    fingerprints = set()
    for place in ("one", "two"):
        WRITERS[name](tmp_path / place)
        benchmark = make_stream("class_split", source=name, data_root=tmp_path / place, classes_per_experience=3)
        assert benchmark.info.source == name
        fingerprints.add(benchmark.info.fingerprint)
    assert len(fingerprints) == 1


@pytest.mark.parametrize(
    ("name", "state"),
    [(name, state) for name in WRITERS for state in ("absent", "incomplete")]
    + [("cifar10", "damaged"), ("cifar100", "damaged")],  # torchvision checks no other files
)
def test_files_not_there_and_no_network(tmp_path, no_network, name, state):
    files, address = PLACES[name]
    if state == "incomplete":
        WRITERS[name](tmp_path)
        kinds = ("train", "data_batch", "emnist-balanced-train")
        folder = tmp_path if name == "svhn" else tmp_path / files
        min(file for file in folder.iterdir() if file.name.startswith(kinds)).unlink()
    elif state == "damaged":
        WRITERS[name](tmp_path)  # not the contents that torchvision's checksums want
    with pytest.raises(FileNotFoundError) as error:
        load_source(name, data_root=tmp_path)
    assert no_network, "a download was tried"
    message = " ".join(str(error.value).split())
    assert message.startswith(f"source '{name}' was not found under '{tmp_path}' and could not be downloaded (")
    assert "there is no network here" in message
    assert message.endswith(
        f"Put its files there as {tmp_path / files} (from {address}), or point data_root to the folder that holds "
        f"{files}. Without network, the source 'digits' always works, as do 'parquet:…' and 'folder:…'."
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_files_not_there_are_downloaded(tmp_path, any_checksum, monkeypatch, name):
    WRITERS[name](tmp_path / "server")

    def download(url, download_root, **_):
        shutil.copytree(tmp_path / "server", download_root, dirs_exist_ok=True)

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", download)
    source = load_source(name, data_root=tmp_path / "here")
    assert len(source.train.y) == 6


def test_digits_need_neither_network_nor_files(tmp_path, no_network):
    sources._load_named.cache_clear()
    benchmark = make_stream("class_split", classes_per_experience=5, data_root=tmp_path / "nowhere")
    assert benchmark.info.source == "digits"
    assert not no_network
    assert not (tmp_path / "nowhere").exists()
