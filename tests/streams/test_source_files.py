"""Which files are data, and which split and class each belongs to."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from continual_metaopt.streams import plan_stream
from continual_metaopt.streams.source_files import image_files, open_regular, parquet_files, splits_named
from continual_metaopt.streams.sources import load_source
from tests.streams.synthetic import coded_images, encode, write_parquet

TRAINING, TEST, VALIDATION = {"training"}, {"test"}, {"validation"}
HELD_OUT = "a tenth of each class of the training images"


def make(root, names):
    """Files that are not read; a name that ends with a slash is a folder."""
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return root


def links(root, targets):
    """Links by their names, to others below the same folder."""
    for name, target in targets.items():
        link = root / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(root / target)


def shards(root):
    """Names of the files of both splits."""
    return [[path.relative_to(root).as_posix() for path in part] for part in parquet_files(root).splits]


def images(root):
    """Names of the files of both splits, and their classes."""
    return [[(path.relative_to(root).as_posix(), name) for path, name in part] for part in image_files(root).splits]


def refuses(find, root, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        find(root)
    assert str(error.value) == message


# --- names of splits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train", TRAINING),
        ("Training", TRAINING),
        ("my_train_file_00.parquet", TRAINING),
        ("cifar10-train.parquet", TRAINING),
        ("train2014", TRAINING),
        ("data.TEST.parquet", TEST),
        ("a b test 1", TEST),
        ("eval-0", TEST),
        ("evaluation", TEST),
        ("2test", TEST),
        ("dev", VALIDATION),
        ("x-VAL_1", VALIDATION),
        ("valid.parquet", VALIDATION),
        ("partial-validation", VALIDATION),
        ("train_test", TRAINING | TEST),
        ("trained", set()),
        ("tested", set()),
        ("values", set()),
        ("constraint", set()),
        ("traintest", set()),
        ("контроль", set()),
        ("", set()),
    ],
)
def test_names_of_splits(name, expected):
    assert splits_named(name) == expected


# --- what is found ---------------------------------------------------------------------------------------------------

# what is made, names of the training and of the test files (after their class, of images), what else is told:
# what was taken for which split, and messages about what was left out, in which {} is the folder
FOUND = {
    **{
        f"{train}, {test}": ([train, test], [train], [test], {"training": train, "test": test})
        for train, test in (
            ("cifar10-train.parquet", "cifar10-test.parquet"),
            ("my_train_0.parquet", "my_test_0.parquet"),
            ("data.train.parquet", "data.test.parquet"),
            ("Train.PARQUET", "TEST.parquet"),
            ("partial-train/0000.parquet", "partial-test/0000.parquet"),
            ("default/train/0.parquet", "default/validation/0.parquet"),
            ("train.parquet/part-0.snappy.parquet", "eval.parquet/part-0.snappy.parquet"),
            ("a.parquet", "dev.parquet"),
        )
    },
    "many shards": (
        [*(f"train-{i}.parquet" for i in range(5)), "test.parquet", "valid-0.parquet", "valid-1.parquet"],
        [f"train-{i}.parquet" for i in range(5)],
        ["test.parquet"],
        {
            "training": "train-0.parquet … train-4.parquet (5)",
            "test": "test.parquet",
            "validation": "valid-0.parquet, valid-1.parquet, not used",
        },
    ),
    "names that a terminal would obey": (
        ["\x1b[31mtrain.parquet", "a\nb/test.parquet"],
        ["\x1b[31mtrain.parquet"],
        ["a\nb/test.parquet"],
        {"training": r"'\x1b[31mtrain.parquet'", "test": r"'a\nb/test.parquet'"},
    ),
    "shards that name no split beside such as do": (
        ["train.parquet", "extra.parquet", "test.parquet", "unlabeled/0.parquet"],
        ["train.parquet"],
        ["test.parquet"],
        {"training": "train.parquet", "test": "test.parquet"},
        "2 parquet files are left out, since they are not named after a split as others are; the first is "
        "'{}/extra.parquet'",
    ),
    "shards that are no data": (
        [
            "train.parquet",
            "__MACOSX/._a.parquet",
            "._train.parquet",
            ".ipynb_checkpoints/train.parquet",
            ".hidden/x/a.parquet",
        ],
        ["train.parquet"],
        [],
        {"training": "train.parquet", "test": HELD_OUT},
    ),
    **{
        f"{train}, {test}": (
            [f"{train}/cat/1.png", f"{train}/dog/2.png", f"{test}/cat/3.png"],
            [f"cat: {train}/cat/1.png", f"dog: {train}/dog/2.png"],
            [f"cat: {test}/cat/3.png"],
            {"training": train, "test": test},
        )
        for train, test in (
            ("train", "test"),
            ("training", "testing"),
            ("Training", "Test"),
            ("TRAIN", "VAL"),
            ("train", "Test"),
            ("imagenet_train", "imagenet-eval"),
            ("train2017", "val2017"),
        )
    },
    "several folders of a split": (
        ["train_1/cat/1.png", "train_2/cat/1.png", "val/cat/2.png", "test/cat/3.png"],
        ["cat: train_1/cat/1.png", "cat: train_2/cat/1.png"],
        ["cat: test/cat/3.png"],
        {"training": "train_1, train_2", "test": "test", "validation": "val, not used"},
    ),
    "a test folder beside classes": (
        ["cat/1.png", "dog/2.png", "test/cat/3.png"],
        ["cat: cat/1.png", "dog: dog/2.png"],
        ["cat: test/cat/3.png"],
        {"training": "cat, dog", "test": "test"},
    ),
    "splits by names of images": (
        ["cat/train_1.png", "cat/test_1.png", "dog/train_2.png", "dog/val_3.png"],
        ["cat: cat/train_1.png", "dog: dog/train_2.png"],
        ["cat: cat/test_1.png"],
        {"training": "train_1.png, train_2.png", "test": "test_1.png", "validation": "val_3.png, not used"},
    ),
    "ImageNet's validation images, whose folder is the source": (
        ["a/val_1.png", "b/val_2.png"],
        ["a: a/val_1.png", "b: b/val_2.png"],
        [],
        {"training": "a, b", "test": HELD_OUT},
    ),
    "names of images that divide nothing": (
        ["a/2.png", "b/test.png", "b/train_1.png"],
        ["a: a/2.png", "b: b/test.png", "b: b/train_1.png"],
        [],
        {"training": "a, b", "test": HELD_OUT},
        "the splits in the names of 2 images, such as '{}/b/test.png', are not used, since others are named without "
        "one",
    ),
    "folders that are no splits beside such as are": (
        ["train/cat/1.png", "test/2.png", "loose.png", "labels/x/1.png"],
        ["cat: train/cat/1.png"],
        [],
        {"training": "train", "test": HELD_OUT},
        "2 folders are left out, since they are not splits as 'train' is; the first is '{}/labels'",
        "1 images are left out, since they lie in no folder of a class; the first is '{}/loose.png'",
    ),
    "empty folders": (
        ["train/cat/1.png", "train/dog/", "train/elk/notes.txt", "test/"],
        ["cat: train/cat/1.png"],
        [],
        {"training": "train", "test": HELD_OUT},
        "the folder '{}/train/dog' holds no images, so that it is not a class",
        "the folder '{}/train/elk' holds no images, so that it is not a class",
        "the folder '{}/test' holds no images, so that it is not the test split",
    ),
    "images that are no data": (
        [
            "cat/1.png",
            "dog/1.png",
            ".ipynb_checkpoints/1-checkpoint.png",
            "cat/.ipynb_checkpoints/1-checkpoint.png",
            "__MACOSX/cat/._1.png",
            "cat/._1.png",
            "cat/@eaDir/1.png/THUMB.png",
            ".git/x/1.png",
            ".Trash-1000/files/1.png",
            "$RECYCLE.BIN/1.png",
        ],
        ["cat: cat/1.png", "dog: dog/1.png"],
        [],
        {"training": "cat, dog", "test": HELD_OUT},
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_is_found(tmp_path, case):
    """The names above a source do not matter."""
    names, train, test, taken, *left_out = FOUND[case]
    root = tmp_path / "test" / "tests-train"
    make(root, names)
    of_shards = any("parquet" in name for name in names)
    found = (parquet_files if of_shards else image_files)(root)
    told = shards(root) if of_shards else [[f"{name}: {path}" for path, name in part] for part in images(root)]
    assert told == [train, test]
    assert found.taken == taken
    assert found.left_out == [message.format(root) for message in left_out]


def test_a_single_file_is_the_training_split_whatever_its_name(tmp_path):
    make(tmp_path, ["test.parquet", "train.parquet"])
    assert parquet_files(tmp_path / "test.parquet").taken == {"training": "test.parquet", "test": HELD_OUT}


AS_CLASSES = (
    "the folders in '{{}}' that would be classes are named after splits ({}); expected train/CLASS/IMAGE and "
    "test/CLASS/IMAGE, or CLASS/IMAGE with names of classes"
)
REFUSED = [
    *(
        (
            ["a.parquet", name],
            f"'{{}}/{name}' is named after two splits, test and training; rename it, or give the path of the folder in "
            "which names are clear",
        )
        for name in ("train/test-0.parquet", "train_test.parquet", "training-data/test.parquet")
    ),
    (["train/1.png", "test/2.png"], AS_CLASSES.format("test, train")),
    (["test/1.png", "val/1.png"], AS_CLASSES.format("test, val")),
    (["Train/1.png", "TEST/1.png", "sample/1.png"], AS_CLASSES.format("TEST, Train, sample")),
    (["train/1.png", "val/cat/1.png"], AS_CLASSES.format("train")),
    (["training/train/1.png", "training/test/1.png"], AS_CLASSES.format("test, train")),
    (["train_images/1.png", "test_images/1.png"], AS_CLASSES.format("test_images, train_images")),
    (["Train/1.png", "val/2.png", "bus/3.png"], AS_CLASSES.format("Train, bus, val")),
    *(
        (
            ["cat/1.png", f"{name}/2.png", f"{name}/cat/3.png"],
            f"'{{}}/{name}' is named after a split, but holds images as well as folders; move its images into folders "
            "of classes, or rename it",
        )
        for name in ("train", "test tube")
    ),
    *(
        (
            [f"{below}/x/1.png", f"{below}/../more/2.png"],
            f"'{{}}/{below}' is named after a split, but its images would belong to the class '{name}'; give the path "
            "of the folder that holds the splits, or rename it",
        )
        for below, name in (("data/train", "data"), ("cat/test", "cat"), ("train/cat/val", "cat"))
    ),
]


@pytest.mark.parametrize(("names", "message"), REFUSED, ids=[", ".join(names) for names, _ in REFUSED])
def test_what_is_refused(tmp_path, names, message):
    find = parquet_files if names[0].endswith("parquet") else image_files
    refuses(find, make(tmp_path, names), message.format(tmp_path))


# --- parquet files ---------------------------------------------------------------------------------------------------


def test_linked_shards(tmp_path):
    """As in Hugging Face's cache, whose snapshots are links."""
    make(tmp_path, ["blobs/1.parquet", "blobs/2.parquet", "elsewhere/0.parquet"])
    snapshot = {"a/train/0.parquet": "blobs/1.parquet", "a/train/1.parquet": "blobs/2.parquet", "a/test": "elsewhere"}
    links(tmp_path, snapshot)
    assert shards(tmp_path / "a") == [["train/0.parquet", "train/1.parquet"], ["test/0.parquet"]]


def test_a_shard_reached_twice(tmp_path):
    make(tmp_path, ["train/0.parquet", "test/1.parquet"])
    links(tmp_path, {"train/also.parquet": "train/0.parquet", "train/round": "train"})
    found = parquet_files(tmp_path)
    assert shards(tmp_path) == [["train/0.parquet"], ["test/1.parquet"]]
    link = tmp_path / "train" / "also.parquet"
    assert found.left_out == [
        f"1 files are left out, since links lead to files that are read already; the first is '{link}'"
    ]
    links(tmp_path, {"test/0.parquet": "train/0.parquet"})
    refuses(
        parquet_files,
        tmp_path,
        f"'{tmp_path / 'train' / '0.parquet'}' and '{tmp_path / 'test' / '0.parquet'}' are the same file, but in "
        "different splits; remove one of them",
    )


# --- image folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["train", "test tube", "bullet_train", "val"])
def test_a_class_may_be_called_like_a_split(tmp_path, word):
    """As in CIFAR-100 and ImageNet: it holds images, not folders."""
    make(tmp_path, [f"{word}/1.png", "cat/1.png", "dog/1.png"])
    assert {name for _, name in images(tmp_path)[0]} == {word, "cat", "dog"}
    make(tmp_path / "more", [f"{split}/{name}/1.png" for split in ("train", "test") for name in (word, "cat")])
    assert {name for part in images(tmp_path / "more") for _, name in part} == {word, "cat"}


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are Unicode here")
def test_names_of_classes_are_text(tmp_path):
    make(tmp_path, [os.fsdecode(b"c\xff/1.png"), "dog/1.png"])
    refuses(image_files, tmp_path, f"the name of the folder '{tmp_path}/c\\udcff' is not Unicode text; rename it")


def test_linked_images_and_folders(tmp_path):
    make(tmp_path, ["a/cat/1.png", "elsewhere/2.png", "elsewhere/deep/3.png", "whole/4.png", "lone.png"])
    links(tmp_path, {"a/cat/more": "elsewhere", "a/dog": "whole", "a/cat/5.png": "lone.png"})
    assert [path for path, _ in images(tmp_path / "a")[0]] == [
        "cat/1.png",
        "cat/5.png",
        "cat/more/2.png",
        "cat/more/deep/3.png",
        "dog/4.png",
    ]


def test_images_reached_twice_are_read_once(tmp_path):
    make(tmp_path, ["cat/1.png", "cat/deep/2.png", "dog/3.png"])
    links(tmp_path, {"cat/1 again.png": "cat/1.png", "cat/linked": "cat/deep"})
    assert [path for path, _ in images(tmp_path)[0]] == ["cat/1.png", "cat/deep/2.png", "dog/3.png"]
    (message,) = image_files(tmp_path).left_out
    assert message == (
        f"2 files are left out, since links lead to files that are read already; the first is "
        f"'{tmp_path / 'cat' / '1 again.png'}'"
    )


@pytest.mark.parametrize(
    ("link", "target", "kind", "first", "second"),
    [
        ("train/dog/1.png", "train/cat/1.png", "classes", "train/cat/1.png", "train/dog/1.png"),
        ("train/dog/more", "train/cat", "classes", "train/cat/1.png", "train/dog/more/1.png"),
        ("test/cat/1.png", "train/cat/1.png", "splits", "train/cat/1.png", "test/cat/1.png"),
    ],
)
def test_an_image_in_two_places(tmp_path, link, target, kind, first, second):
    make(tmp_path, ["train/cat/1.png", "train/dog/2.png", "test/cat/3.png"])
    links(tmp_path, {link: target})
    one, other = f"'{tmp_path / first}'", f"'{tmp_path / second}'"
    message = f"{one} and {other} are the same file, but in different {kind}; remove one of them"
    refuses(image_files, tmp_path, message)


def test_links_in_circles(tmp_path):
    make(tmp_path, ["cat/1.png", "dog/2.png", "other/3.png"])
    links(tmp_path, {"cat/root": ".", "dog/above": "..", "cat/here": "cat"})
    assert [path for path, _ in images(tmp_path)[0]] == ["cat/1.png", "dog/2.png", "other/3.png"]


def test_links_that_lead_everywhere(tmp_path):
    """Eight folders, each with links to all: as many ways as there are orders of them."""
    for i in range(8):
        make(tmp_path, [f"hub/{i}/{i}.png"])
        for j in range(8):
            (tmp_path / "hub" / str(i) / f"to{j}").symlink_to(tmp_path / "hub" / str(j))
    with pytest.raises(ValueError, match=r"^links below '.*hub' lead to '.*' in more than 100 ways; remove some$"):
        image_files(tmp_path)


def test_very_deep_folders(tmp_path):
    deep = tmp_path / "cat"
    deep.mkdir()
    here = os.getcwd()  # noqa: PTH109
    try:
        for _ in range(400):
            os.chdir(deep)
            Path("d").mkdir()
            deep = deep / "d"
    finally:
        os.chdir(here)
    (deep / "1.png").touch()
    assert len(image_files(tmp_path).splits[0]) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_pipes_and_links_to_nothing_are_named_and_not_waited_for(tmp_path):
    make(tmp_path, ["a/cat/1.png", "p/train.parquet"])
    for name, find in (("a/cat/2.png", image_files), ("p/test.parquet", parquet_files)):
        path, root = tmp_path / name, tmp_path / name[0]
        os.mkfifo(path)
        refuses(find, root, f"'{path}' is not a regular file; remove it, or put the file there")
        path.unlink()
        path.symlink_to(tmp_path / "nowhere")
        refuses(find, root, f"'{path}' is a link that leads nowhere; remove it, or put the file there")
        path.unlink()
        path.symlink_to("/dev/zero")
        refuses(find, root, f"'{path}' is not a regular file; remove it, or put the file there")
    os.mkfifo(tmp_path / "pipe")
    refuses(parquet_files, tmp_path / "pipe", f"'{tmp_path / 'pipe'}' is not a regular file")
    with pytest.raises(FileNotFoundError, match=re.escape(f"no image folder at '{tmp_path / 'pipe'}'")):
        image_files(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a regular file"):
        open_regular(Path("/dev/null"))


# --- as a source -----------------------------------------------------------------------------------------------------


def test_what_was_taken_is_recorded_and_said(tmp_path):
    encoded, labels = [encode(image) for image in coded_images(range(20))], np.arange(20) % 2
    for name in ("my-train.parquet", "my-test.parquet", "other.parquet"):
        write_parquet(tmp_path / name, encoded, labels)
    with pytest.warns(UserWarning, match="1 parquet files are left out") as warned:
        source = load_source(f"parquet:{tmp_path}")
    assert [str(warning.message) for warning in warned] == source.left_out
    info = plan_stream("permuted_inputs", source=f"parquet:{tmp_path}", n_experiences=1).info
    assert info.splits == info.as_record()["splits"] == {"training": "my-train.parquet", "test": "my-test.parquet"}
    assert info.said_of_splits() == f"parquet:{tmp_path}: training: my-train.parquet; test: my-test.parquet"
    assert plan_stream("permuted_inputs", n_experiences=1).info.said_of_splits() == ""
