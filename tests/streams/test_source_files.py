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


# --- parquet files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("cifar10-train.parquet", "cifar10-test.parquet"),
        ("my_train_0.parquet", "my_test_0.parquet"),
        ("data.train.parquet", "data.test.parquet"),
        ("Train.PARQUET", "TEST.parquet"),
        ("partial-train/0000.parquet", "partial-test/0000.parquet"),
        ("default/train/0.parquet", "default/validation/0.parquet"),
        ("train.parquet/part-0.snappy.parquet", "eval.parquet/part-0.snappy.parquet"),
        ("a.parquet", "dev.parquet"),
    ],
)
def test_splits_of_shards(tmp_path, train, test):
    make(tmp_path, [train, test])
    assert shards(tmp_path) == [[train], [test]]
    assert parquet_files(tmp_path).taken == {"training": train, "test": test}
    assert parquet_files(tmp_path).left_out == []


def test_what_was_taken_is_told_briefly(tmp_path):
    make(tmp_path, [*(f"train-{i}.parquet" for i in range(5)), "test.parquet", "valid-0.parquet", "valid-1.parquet"])
    assert parquet_files(tmp_path).taken == {
        "training": "train-0.parquet … train-4.parquet (5)",
        "test": "test.parquet",
        "validation": "valid-0.parquet, valid-1.parquet, not used",
    }
    assert parquet_files(tmp_path / "test.parquet").taken == {"training": "test.parquet", "test": HELD_OUT}


def test_names_that_a_terminal_would_obey(tmp_path):
    make(tmp_path, ["\x1b[31mtrain.parquet", "a\nb/test.parquet"])
    assert parquet_files(tmp_path).taken == {"training": r"'\x1b[31mtrain.parquet'", "test": r"'a\nb/test.parquet'"}


def test_shards_that_name_no_split_beside_such_as_do(tmp_path):
    make(tmp_path, ["train.parquet", "extra.parquet", "test.parquet", "unlabeled/0.parquet"])
    assert shards(tmp_path) == [["train.parquet"], ["test.parquet"]]
    assert parquet_files(tmp_path).left_out == [
        "2 parquet files are left out, since they are not named after a split as others are; the first is "
        f"'{tmp_path / 'extra.parquet'}'"
    ]


@pytest.mark.parametrize("name", ["train/test-0.parquet", "train_test.parquet", "training-data/test.parquet"])
def test_a_shard_of_two_splits(tmp_path, name):
    make(tmp_path, ["a.parquet", name])
    refuses(
        parquet_files,
        tmp_path,
        f"'{tmp_path / name}' is named after two splits, test and training; rename it, or give the path of the folder "
        "in which names are clear",
    )


def test_the_names_above_a_source_do_not_matter(tmp_path):
    make(tmp_path, ["test/tests-train/train.parquet", "test/tests-train/val.parquet"])
    assert shards(tmp_path / "test" / "tests-train") == [["train.parquet"], ["val.parquet"]]


def test_shards_that_are_no_data(tmp_path):
    names = ["__MACOSX/._a.parquet", "._train.parquet", ".ipynb_checkpoints/train.parquet", ".hidden/x/a.parquet"]
    make(tmp_path, ["train.parquet", *names])
    assert shards(tmp_path) == [["train.parquet"], []]


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


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("training", "testing"),
        ("Training", "Test"),
        ("TRAIN", "VAL"),
        ("train", "Test"),
        ("imagenet_train", "imagenet-eval"),
        ("train2017", "val2017"),
    ],
)
def test_splits_of_folders(tmp_path, train, test):
    make(tmp_path, [f"{train}/cat/1.png", f"{train}/dog/2.png", f"{test}/cat/3.png"])
    assert images(tmp_path) == [
        [(f"{train}/cat/1.png", "cat"), (f"{train}/dog/2.png", "dog")],
        [(f"{test}/cat/3.png", "cat")],
    ]
    assert image_files(tmp_path).taken == {"training": train, "test": test}


def test_several_folders_of_a_split(tmp_path):
    make(tmp_path, ["train_1/cat/1.png", "train_2/cat/1.png", "val/cat/2.png", "test/cat/3.png"])
    train = [("train_1/cat/1.png", "cat"), ("train_2/cat/1.png", "cat")]
    assert images(tmp_path) == [train, [("test/cat/3.png", "cat")]]
    taken = {"training": "train_1, train_2", "test": "test", "validation": "val, not used"}
    assert image_files(tmp_path).taken == taken


def test_a_test_folder_beside_classes(tmp_path):
    make(tmp_path, ["cat/1.png", "dog/2.png", "test/cat/3.png"])
    assert images(tmp_path) == [[("cat/1.png", "cat"), ("dog/2.png", "dog")], [("test/cat/3.png", "cat")]]


@pytest.mark.parametrize("word", ["train", "test tube", "bullet_train", "val"])
def test_a_class_may_be_called_like_a_split(tmp_path, word):
    """As in CIFAR-100 and ImageNet: it holds images, not folders."""
    make(tmp_path, [f"{word}/1.png", "cat/1.png", "dog/1.png"])
    assert {name for _, name in images(tmp_path)[0]} == {word, "cat", "dog"}
    make(tmp_path / "more", [f"{split}/{name}/1.png" for split in ("train", "test") for name in (word, "cat")])
    assert {name for part in images(tmp_path / "more") for _, name in part} == {word, "cat"}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train/1.png", "test/2.png"], "test, train"),
        (["test/1.png", "val/1.png"], "test, val"),
        (["Train/1.png", "TEST/1.png", "sample/1.png"], "TEST, Train, sample"),
        (["train/1.png", "val/cat/1.png"], "train"),
        (["training/train/1.png", "training/test/1.png"], "test, train"),
        (["train_images/1.png", "test_images/1.png"], "test_images, train_images"),
        (["Train/1.png", "val/2.png", "bus/3.png"], "Train, bus, val"),
    ],
)
def test_splits_are_not_taken_for_classes(tmp_path, names, said):
    make(tmp_path, names)
    refuses(
        image_files,
        tmp_path,
        f"the folders in '{tmp_path}' that would be classes are named after splits ({said}); expected "
        "train/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE with names of classes",
    )


@pytest.mark.parametrize("name", ["train", "test tube"])
def test_a_split_that_holds_images_itself(tmp_path, name):
    make(tmp_path, ["cat/1.png", f"{name}/2.png", f"{name}/cat/3.png"])
    refuses(
        image_files,
        tmp_path,
        f"'{tmp_path / name}' is named after a split, but holds images as well as folders; move its images into "
        "folders of classes, or rename it",
    )


@pytest.mark.parametrize("below", ["data/train", "cat/test", "train/cat/val"])
def test_splits_below_classes(tmp_path, below):
    make(tmp_path, [f"{below}/x/1.png", f"{below}/../more/2.png"])
    class_folder = "cat" if "cat" in below else "data"
    refuses(
        image_files,
        tmp_path,
        f"'{tmp_path / below}' is named after a split, but its images would belong to the class '{class_folder}'; "
        "give the path of the folder that holds the splits, or rename it",
    )


def test_splits_by_names_of_images(tmp_path):
    make(tmp_path, ["cat/train_1.png", "cat/test_1.png", "dog/train_2.png", "dog/val_3.png"])
    assert images(tmp_path) == [
        [("cat/train_1.png", "cat"), ("dog/train_2.png", "dog")],
        [("cat/test_1.png", "cat")],
    ]
    assert image_files(tmp_path).taken == {
        "training": "train_1.png, train_2.png",
        "test": "test_1.png",
        "validation": "val_3.png, not used",
    }


@pytest.mark.parametrize(
    ("names", "n_unused"), [(["a/val_1.png", "b/val_2.png"], 0), (["a/2.png", "b/test.png", "b/train_1.png"], 2)]
)
def test_names_of_images_that_divide_nothing(tmp_path, names, n_unused):
    """As of ImageNet's validation images, whose folder is the source."""
    make(tmp_path, names)
    assert images(tmp_path) == [[(name, name[0]) for name in names], []]
    unused = (
        f"the splits in the names of {n_unused} images, such as '{tmp_path / 'b' / 'test.png'}', are not used, since "
        "others are named without one"
    )
    assert image_files(tmp_path).left_out == ([unused] if n_unused else [])


def test_folders_that_are_no_splits_beside_such_as_are(tmp_path):
    make(tmp_path, ["train/cat/1.png", "test/2.png", "loose.png", "labels/x/1.png"])
    found = image_files(tmp_path)
    assert images(tmp_path) == [[("train/cat/1.png", "cat")], []]
    assert found.taken == {"training": "train", "test": HELD_OUT}
    assert found.left_out == [
        f"2 folders are left out, since they are not splits as 'train' is; the first is '{tmp_path / 'labels'}'",
        f"1 images are left out, since they lie in no folder of a class; the first is '{tmp_path / 'loose.png'}'",
    ]


def test_empty_folders(tmp_path):
    make(tmp_path, ["train/cat/1.png", "train/dog/", "train/elk/notes.txt", "test/"])
    assert image_files(tmp_path).left_out == [
        f"the folder '{tmp_path / 'train' / 'dog'}' holds no images, so that it is not a class",
        f"the folder '{tmp_path / 'train' / 'elk'}' holds no images, so that it is not a class",
        f"the folder '{tmp_path / 'test'}' holds no images, so that it is not the test split",
    ]
    assert image_files(tmp_path).taken == {"training": "train", "test": HELD_OUT}


def test_what_is_no_data(tmp_path):
    no_data = [
        ".ipynb_checkpoints/1-checkpoint.png",
        "cat/.ipynb_checkpoints/1-checkpoint.png",
        "__MACOSX/cat/._1.png",
        "cat/._1.png",
        "cat/@eaDir/1.png/THUMB.png",
        ".git/x/1.png",
        ".Trash-1000/files/1.png",
        "$RECYCLE.BIN/1.png",
    ]
    make(tmp_path, ["cat/1.png", "dog/1.png", *no_data])
    assert images(tmp_path) == [[("cat/1.png", "cat"), ("dog/1.png", "dog")], []]
    assert image_files(tmp_path).left_out == []


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
