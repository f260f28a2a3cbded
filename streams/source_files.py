"""Which files below a folder are data, and which split and class each belongs to.

Splits are told by Hugging Face's rule: a word such as "train" or "test" in the name of a file or folder, in any case,
between any of "-._ 0-9" or at an end of the name. Linked files and folders are read like others. Hidden files, and what
systems and archivers leave in folders, are not data.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

TRAINING, TEST, VALIDATION = "training", "test", "validation"
WORDS = {
    TRAINING: {"train", "training"},
    TEST: {"test", "testing", "eval", "evaluation"},
    VALIDATION: {"validation", "valid", "val", "dev"},
}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
LEFT_BEHIND = {"__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information"}
MAX_WAYS = 100  # by which links may lead to one folder
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
FETCH_LFS = "it is a pointer of Git LFS in place of the file; fetch the file with 'git lfs pull'"


@dataclass
class Found:
    """The files of a source.

    Attributes:
        splits: the files of the training and of the test split; of image folders, each with its class.
        taken: what was taken for which split, in words.
        left_out: messages about what was left out.
    """

    splits: list[list[Any]]
    taken: dict[str, str]
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    resolved: str
    linked: bool
    split: str = ""
    class_name: str = ""


def splits_named(name: str) -> set[str]:
    """Tell the splits that a name of a file or folder names.

    Example:
        >>> splits_named("cifar10-Train.parquet")
        {'training'}
    """
    words = _words(name)
    return {split for split, known in WORDS.items() if words & known}


def _words(name: str) -> set[str]:
    return set(re.split("[-._ 0-9]+", name.casefold())) - {""}


def parquet_files(path: Path) -> Found:
    """Find the shards of a parquet file or folder: train-00000-of-00001.parquet, or train/0000.parquet.

    Raises:
        FileNotFoundError: there are none, or none to learn from.
        ValueError: one is not a regular file, is named after two splits, or is in two splits.
    """
    if not path.exists():
        raise FileNotFoundError(f"no parquet file or folder at '{path}'; give the path of a .parquet file or a folder")
    if not path.is_dir():
        with open_regular(path):
            return Found([[path], []], _taken([path.name], []))
    files = []
    for file in _files_below(path, {".parquet"}):
        named = set[str]().union(*map(splits_named, file.path.relative_to(path).parts))
        files.append(replace(file, split=_one_of(named, file.path)))
    if not files:
        raise FileNotFoundError(f"the folder '{path}' holds no .parquet file")
    by_split = {split: [file for file in files if file.split == split] for split in ("", *WORDS)}
    training, unnamed, left_out = by_split[TRAINING], by_split[""], list[str]()
    if training and unnamed:
        why = "since they are not named after a split as others are"
        left_out.append(_left_out([file.path for file in unnamed], "parquet files are", why))
    if not (training or unnamed):
        raise FileNotFoundError(f"the folder '{path}' holds test shards only; the names of training shards: train-*")
    parts = [training or unnamed, by_split[TEST] or by_split[VALIDATION]]
    spare = by_split[VALIDATION] if by_split[TEST] else []
    names = [[file.path.relative_to(path).as_posix() for file in part] for part in (*parts, spare)]
    splits = _each_once(parts, left_out)
    return Found([[file.path for file in part] for part in splits], _taken(*names), left_out)


def image_files(path: Path) -> Found:
    """Find the images of a folder: ``[train|test/]CLASS/IMAGE``, each with its class.

    A folder is a split if its name says so and it holds folders, of classes, but no images itself.

    Raises:
        FileNotFoundError: there are none, or none to learn from.
        ValueError: names of splits are found where classes should be, one is not a regular file, is named after two
            splits, or is in two splits or classes.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no image folder at '{path}'")
    folders: dict[str, list[Path]] = {split: [] for split in ("", *WORDS)}
    for folder in _subfolders(path):
        named = splits_named(folder.name)
        images = _images_in(folder) if named else []
        if images and _subfolders(folder):
            raise ValueError(
                f"'{folder}' is named after a split, but holds images as well as folders; move its images into folders "
                "of classes, or rename it"
            )
        folders[_one_of(named, folder) if named and not images else ""].append(folder)
    training, unnamed = folders[TRAINING], folders[""]
    held_out = folders[TEST] or folders[VALIDATION]
    spare = folders[VALIDATION] if folders[TEST] else []
    left_out: list[str] = []
    if training and unnamed:
        why = f"since they are not splits as '{training[0].name}' is"
        left_out.append(_left_out(unnamed, "folders are", why))
    loose = [image for parent in (path, *training, *held_out) for image in _images_in(parent)]
    if loose:
        left_out.append(_left_out(loose, "images are", "since they lie in no folder of a class"))
    parts = [
        [
            file
            for folder in (folder for parent in parents for folder in _subfolders(parent))
            for file in _images_of_class(folder, names, left_out)
        ]
        for parents, names in ((training, {TRAINING}), (held_out, {TEST, VALIDATION}))
    ]
    if not training:
        parts[0] = [file for folder in unnamed for file in _images_of_class(folder, set(), left_out)]
    if not parts[0]:
        raise FileNotFoundError(f"no images in '{path}'; expected CLASS/IMAGE or train/CLASS/IMAGE below it")
    if held_out and not parts[1]:
        left_out.append(f"the folder '{held_out[0]}' holds no images, so that it is not the test split")
    _refuse_splits_as_classes(path, parts[0])
    names = [[folder.name for folder in part] for part in (training or unnamed, held_out if parts[1] else [], spare)]
    if not (training or held_out):
        parts, names = _by_names_of_files(parts, names, left_out)
    splits = _each_once(parts, left_out)
    return Found([[(file.path, file.class_name) for file in part] for part in splits], _taken(*names), left_out)


def _images_of_class(folder: Path, splits: set[str], left_out: list[str]) -> list[_File]:
    """Find the images of a class, whose deeper folders must not be other splits."""
    if folder.name.encode(errors="replace").decode() != folder.name:
        raise ValueError(f"the name of the folder {str(folder)!a} is not Unicode text; rename it")
    found = _files_below(folder, IMAGE_SUFFIXES)
    if not found:
        left_out.append(f"the folder '{folder}' holds no images, so that it is not a class")
    for parent in dict.fromkeys(file.path.parent for file in found):
        for number, part in enumerate(parent.relative_to(folder).parts):
            if splits_named(part) - splits:
                within = folder.joinpath(*parent.relative_to(folder).parts[: number + 1])
                raise ValueError(
                    f"'{within}' is named after a split, but its images would belong to the class '{folder.name}'; "
                    "give the path of the folder that holds the splits, or rename it"
                )
    return [replace(file, class_name=folder.name) for file in found]


def _refuse_splits_as_classes(path: Path, files: Iterable[_File]) -> None:
    names = sorted({file.class_name for file in files})
    outright = [name for name in names if _words(name) and _words(name) <= set[str]().union(*WORDS.values())]
    splits = set[str]().union(*map(splits_named, outright))
    if all(map(splits_named, names)) or (TRAINING in splits and len(splits) > 1):
        raise ValueError(
            f"the folders in '{path}' that would be classes are named after splits ({_listed(names)}); expected "
            "train/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE with names of classes"
        )


def _by_names_of_files(
    parts: list[list[_File]], names: list[list[str]], left_out: list[str]
) -> tuple[list[list[_File]], list[list[str]]]:
    """Divide images by their own names, if all of them are named after a split, and not all after the same one."""
    named = [splits_named(file.path.name) for file in parts[0]]
    if any(named) and not all(named):
        some = [file.path for file, splits in zip(parts[0], named, strict=True) if splits]
        why = "since others are named without one"
        left_out.append(f"the splits in the names of {len(some)} images, such as '{some[0]}', are not used, {why}")
    if not all(len(splits) == 1 for splits in named) or {TRAINING} not in named or all(n == {TRAINING} for n in named):
        return parts, names
    held_out = TEST if {TEST} in named else VALIDATION
    wanted = [TRAINING, held_out, *([VALIDATION] if held_out == TEST else [])]
    divided = [[file for file, split in zip(parts[0], named, strict=True) if split == {w}] for w in wanted]
    return divided[:2], [[file.path.name for file in part] for part in divided]


def _one_of(named: set[str], path: Path) -> str:
    if len(named) > 1:
        raise ValueError(
            f"'{path}' is named after two splits, {' and '.join(sorted(named))}; rename it, or give the path of the "
            "folder in which names are clear"
        )
    return next(iter(named), "")


def _each_once(parts: list[list[_File]], left_out: list[str]) -> list[list[_File]]:
    """Keep every file once, by whatever links it is reached, and tell what is left out.

    Raises:
        ValueError: a file is in two splits or classes.
    """
    seen: dict[str, tuple[int, _File]] = {}
    again = []
    for number, part in enumerate(parts):
        for file in sorted(part, key=lambda file: file.linked):
            split, first = seen.setdefault(file.resolved, (number, file))
            if (split, first.class_name) != (number, file.class_name):
                raise ValueError(
                    f"'{first.path}' and '{file.path}' are the same file, but in different "
                    f"{'splits' if split != number else 'classes'}; remove one of them"
                )
            if first is not file:
                again.append(file.path)
    if again:
        left_out.append(_left_out(again, "files are", "since links lead to files that are read already"))
    kept = {id(file) for _, file in seen.values()}
    return [[file for file in part if id(file) in kept] for part in parts]


def _taken(training: Sequence[str], test: Sequence[str], validation: Sequence[str] = ()) -> dict[str, str]:
    taken = {TRAINING: _listed(training), TEST: _listed(test) or "a tenth of each class of the training images"}
    return taken | ({VALIDATION: f"{_listed(validation)}, not used"} if validation else {})


def _listed(names: Sequence[str]) -> str:
    shown = [name if name.isprintable() else ascii(name) for name in names]
    return ", ".join(shown) if len(shown) <= 3 else f"{shown[0]} … {shown[-1]} ({len(shown)})"


def _left_out(paths: Sequence[Path], what: str, why: str) -> str:
    return f"{len(paths)} {what} left out, {why}; the first is '{paths[0]}'"


def _is_data(name: str) -> bool:
    return not name.startswith(".") and name.casefold() not in LEFT_BEHIND


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [folder / name for name in sorted(e.name for e in entries if _is_data(e.name) and e.is_dir())]


def _images_in(folder: Path) -> list[Path]:
    """Find the images in a folder itself."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.is_dir()]
    return [folder / name for name in sorted(names) if _is_data(name) and Path(name).suffix.lower() in IMAGE_SUFFIXES]


def _files_below(folder: Path, suffixes: set[str]) -> list[_File]:
    """Find files with one of the suffixes, in the order of their names.

    The order is the same on Windows, where paths themselves ignore upper case.
    """
    found, ways = [], Counter[str]()
    to_read: list[tuple[Path, tuple[str, ...]]] = [(folder, (os.path.realpath(folder),))]
    while to_read:
        current, above = to_read.pop()  # and the real folders from which links led here, with its own
        ways[above[-1]] += 1
        if ways[above[-1]] > MAX_WAYS:
            raise ValueError(f"links below '{folder}' lead to '{above[-1]}' in more than {MAX_WAYS} ways; remove some")
        with os.scandir(current) as entries:
            for entry in entries:
                if not _is_data(entry.name):
                    continue
                path, linked = current / entry.name, entry.is_symlink()
                resolved = os.path.realpath(path) if linked else f"{above[-1].rstrip(os.sep)}{os.sep}{entry.name}"
                if entry.is_dir():
                    if not linked:
                        to_read.append((path, (*above[:-1], resolved)))
                    elif not any(_is_within(place, resolved) for place in above):  # or it would go round in circles
                        to_read.append((path, (*above, resolved)))
                elif path.suffix.lower() in suffixes:
                    if not entry.is_file():
                        raise ValueError(f"'{path}' is {_what_else(path)}; remove it, or put the file there")
                    found.append(_File(path, resolved, linked or len(above) > 1))
    n = len(folder.parts)
    return sorted(found, key=lambda file: file.path.parts[n:])


def _is_within(place: str, folder: str) -> bool:
    return f"{place}{os.sep}".startswith(f"{folder.rstrip(os.sep)}{os.sep}")


def _what_else(path: Path) -> str:
    return "not a regular file" if path.exists() else "a link that leads nowhere"


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read it, but not a device or a pipe, which may never end.

    Raises:
        ValueError: it is not a regular file.
        OSError: it cannot be opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"'{path}' is {_what_else(path)}")
    return path.open("rb")
