"""Sources: where a stream's images come from.

Images are kept decoded in memory as uint8, one array per split; those that come from files are decoded once for all
processes of a machine. A source that has no test split of its own gets one: a tenth of its images, the same ones every
time.
"""

import functools
import hashlib
import io
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streams.decoded_images import decode_once
from streams.images import ImageSet, ImageSource
from streams.registry import UnknownNameError, unknown_name

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
# "test-00000-of-00001.parquet", or "test/0000.parquet" as in Hugging Face's own conversions
HELD_OUT = re.compile(r"(test|testing|val|valid|validation)(?![a-z])")
LABEL_COLUMNS = ("fine_label", "label", "labels")

# name -> (class in torchvision.datasets, its arguments, what the files are called, where they come from)
TORCHVISION: dict[str, tuple[str, dict[str, str], str, str]] = {
    "cifar10": ("CIFAR10", {}, "cifar-10-batches-py/", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "cifar100": ("CIFAR100", {}, "cifar-100-python/", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "mnist": ("MNIST", {}, "MNIST/raw/", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "fashion_mnist": (
        "FashionMNIST",
        {},
        "FashionMNIST/raw/",
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
    "emnist": (
        "EMNIST",
        {"split": "balanced"},
        "EMNIST/raw/",
        "https://www.nist.gov/itl/products-and-services/emnist-dataset",
    ),
}
NAMED_SOURCES = ("digits", *TORCHVISION)

Arrays = tuple[Any, Any] | tuple[Any, Any, Any, Any]
SourceSpec = str | Arrays


def load_source(source: SourceSpec, data_root: str | Path = "data", skip_unreadable: bool = False) -> ImageSource:
    """Load a source; within a process, images are read once, and on a machine, files are decoded once.

    Args:
        source: "digits" (ships with scikit-learn), "cifar100", "cifar10", "mnist", "fashion_mnist", "emnist" (through
            torchvision), "parquet:FILE_OR_FOLDER" (Hugging Face's image layout), "folder:DIR" (``[train|test/]CLASS/
            IMAGE``), or arrays ``(x, y)`` or ``(x, y, x_test, y_test)`` with x uint8 [N, H, W] or [N, H, W, C].
        data_root: the folder of torchvision's files.
        skip_unreadable: leave images out that cannot be decoded, instead of stopping with their names.

    Raises:
        UnknownNameError: no such source.
        FileNotFoundError: the files are not there and cannot be downloaded.
        ValueError: images of different sizes, an unreadable image, or arrays of the wrong type or shape.
    """
    if not isinstance(source, str):
        return _from_arrays(source)
    return _load_named(source, str(data_root), skip_unreadable)


@functools.lru_cache(maxsize=2)
def _load_named(source: str, data_root: str, skip_unreadable: bool) -> ImageSource:
    if source == "digits":
        return _digits()
    kind, _, path = source.partition(":")
    files: list[Any]
    if source in TORCHVISION:
        folder = Path(data_root).expanduser() / TORCHVISION[source][2]
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        decode = functools.partial(_torchvision, source, data_root)
    elif path and kind == "parquet":
        files = _parquet_shards(Path(path).expanduser())
        decode = functools.partial(_parquet, source, files, skip_unreadable)
    elif path and kind == "folder":
        files = _image_files(Path(path).expanduser())
        decode = functools.partial(_image_folder, source, files, skip_unreadable)
    else:
        known = [*NAMED_SOURCES, "parquet:FILE_OR_FOLDER", "folder:DIR"]
        raise UnknownNameError(unknown_name("source", source, known))
    # torchvision downloads what is not there; without files nothing tells whether images kept are those
    images = decode_once([kind, files, skip_unreadable], decode) if files else decode()
    return replace(images, name=source)  # whoever decoded the files may have written their path in another way


def _digits() -> ImageSource:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    y = digits.target.astype(np.int64)
    # scikit-learn has no test split; a fifth is held out, since a tenth of so few images would be noisy
    train, test = _hold_out(x, y, fraction=0.2)
    return ImageSource("digits", train, test, list(range(10)), _hash(map(_bytes, (x, y))))


def _torchvision(name: str, data_root: str) -> ImageSource:
    arrays = []
    for train in (True, False):
        split = _torchvision_split(name, data_root, train)
        x = np.ascontiguousarray(split.data, dtype=np.uint8)
        arrays.append((x if x.ndim == 4 else x[..., None], np.asarray(split.targets, dtype=np.int64)))
    (x, labels), (x_test, test_labels) = arrays
    content = _hash(_bytes(part) for pair in arrays for part in pair)
    classes, y, y_test = _number_classes(labels, test_labels)
    return ImageSource(name, ImageSet(x, y), ImageSet(x_test, y_test), classes, content)


def _torchvision_split(name: str, data_root: str, train: bool) -> Any:
    """One split of a data set of torchvision, downloaded if it is not there."""
    import torchvision

    class_name, arguments, files, address = TORCHVISION[name]
    dataset = getattr(torchvision.datasets, class_name)
    try:
        return dataset(data_root, train=train, download=False, **arguments)
    except RuntimeError:  # "not found or corrupted"
        pass
    try:
        return dataset(data_root, train=train, download=True, **arguments)
    except Exception as error:  # torchvision raises whatever its downloader met
        raise FileNotFoundError(
            f"source '{name}' was not found under '{data_root}' and could not be downloaded ({error}). "
            f"Put its files there as {Path(data_root) / files} (from {address}), or point data_root to the folder "
            f"that holds {files}. Without a network, source='digits' always works, as do 'parquet:…' and 'folder:…'."
        ) from error


def _parquet_shards(path: Path) -> list[list[Path]]:
    """The files of the training and of the test split."""
    if not path.exists():
        raise FileNotFoundError(f"no parquet file or folder at '{path}'; give the path of a .parquet file or a folder")
    shards = _sorted(path.glob("**/*.parquet"), path) if path.is_dir() else [path]
    if not shards:
        raise FileNotFoundError(f"the folder '{path}' holds no .parquet file")
    held_out = [shard for shard in shards if any(map(HELD_OUT.match, shard.relative_to(path).parts))]
    splits = [[shard for shard in shards if shard not in held_out], held_out]
    if not splits[0]:
        raise FileNotFoundError(f"the folder '{path}' holds test shards only; the names of training shards: train-*")
    return splits


def _parquet(name: str, splits: list[list[Path]], skip_unreadable: bool) -> ImageSource:
    import pyarrow.parquet as pq

    encoded: list[list[tuple[str, bytes, Any]]] = []
    for split in splits:
        rows = []
        for shard in split:
            table = pq.read_table(shard)
            image_column, label_column = _columns(table.schema, shard)
            images = table.column(image_column).combine_chunks().field("bytes")
            labels = table.column(label_column).to_pylist()
            if None in labels:
                raise ValueError(f"{shard.name}, row {labels.index(None)} has no label in the column '{label_column}'")
            rows += [
                (f"{shard.name}, row {row}", image.as_py() or b"", label)
                for row, (image, label) in enumerate(zip(images, labels, strict=True))
            ]
        encoded.append(rows)
    return _from_encoded(name, encoded, skip_unreadable)


def _columns(schema: Any, shard: Path) -> tuple[str, str]:
    """Names of the image and the label column of a shard in Hugging Face's layout."""
    import pyarrow.types as types

    images = [
        column.name for column in schema if types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
    ]
    integers = [column.name for column in schema if types.is_integer(column.type)]
    label = next((column for column in LABEL_COLUMNS if column in integers), None)
    if label is None and len(integers) == 1:
        label = integers[0]
    if not images or label is None:
        raise ValueError(
            f"'{shard}' is not in Hugging Face's image layout: expected a column {{bytes, path}} of images and an "
            f"integer column named one of {', '.join(LABEL_COLUMNS)}, found {', '.join(schema.names)}"
        )
    return images[0], label


def _image_files(path: Path) -> list[list[tuple[Path, str]]]:
    """The files of the training and of the test split, each with its class."""
    if not path.is_dir():
        raise FileNotFoundError(f"no image folder at '{path}'")
    train, test = path, None
    if (path / "train").is_dir():
        train = path / "train"
        test = next((path / split for split in ("test", "val", "valid") if (path / split).is_dir()), None)
    splits = [
        [
            (file, file.relative_to(folder).parts[0])
            for file in _sorted(folder.glob("*/**/*"), folder)
            if file.suffix.lower() in IMAGE_SUFFIXES
        ]
        if folder is not None
        else []
        for folder in (train, test)
    ]
    if not splits[0]:
        raise FileNotFoundError(f"no images in '{path}'; expected CLASS/IMAGE or train/CLASS/IMAGE below it")
    return splits


def _sorted(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Paths below a folder in the order of their names, also on Windows, where paths themselves ignore upper case."""
    return sorted(paths, key=lambda path: path.relative_to(folder).parts)


def _image_folder(name: str, splits: list[list[tuple[Path, str]]], skip_unreadable: bool) -> ImageSource:
    encoded = [[(str(file), file.read_bytes(), label) for file, label in split] for split in splits]
    return _from_encoded(name, encoded, skip_unreadable)


def _from_encoded(name: str, splits: list[list[tuple[str, bytes, Any]]], skip_unreadable: bool) -> ImageSource:
    """Decode splits of (where from, file content, label)."""
    arrays, labels, left_out = [], [], []
    for rows in splits:
        decoded = [(where, _decode(where, content, skip_unreadable), label) for where, content, label in rows]
        kept = [(where, image, label) for where, image, label in decoded if image is not None]
        if len(kept) < len(decoded):
            first = next(where for where, image, _ in decoded if image is None)
            left_out.append(f"{len(decoded) - len(kept)} unreadable images are left out, the first at {first}")
            warnings.warn(left_out[-1], stacklevel=2)
        arrays.append([(where, image) for where, image, _ in kept])
        labels.append([label for _, _, label in kept])
    stacked = _stack([image for split in arrays for image in split])
    x, x_test = stacked[: len(arrays[0])], stacked[len(arrays[0]) :]
    content = _hash(part for rows in splits for _, image, label in rows for part in (image, str(label).encode()))
    classes, y, y_test = _number_classes(labels[0], labels[1])
    train, test = (ImageSet(x, y), ImageSet(x_test, y_test)) if len(x_test) else _hold_out(x, y)
    return ImageSource(name, train, test, classes, content, left_out)


def _decode(where: str, content: bytes, skip_unreadable: bool) -> NDArray[np.uint8] | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return _pixels(image)
    except Exception as error:  # Pillow raises many kinds for a damaged file
        if skip_unreadable:
            return None
        raise ValueError(
            f"cannot read the image at {where} ({error}); pass skip_unreadable=True to go on without such images"
        ) from error


def _pixels(image: "Image") -> NDArray[np.uint8]:
    if image.mode.startswith(("I", "F")):  # Pillow would turn all but the darkest pixels white
        raise ValueError(f"its pixels, of mode {image.mode}, are deeper than 8 bits; convert it to 8 bits")
    grey = image.mode in ("1", "L")
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels


def _stack(images: list[tuple[str, NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    if not images:
        raise ValueError("not one of the images could be read")
    sizes = {image.shape[:2]: where for where, image in images}
    if len(sizes) > 1:
        examples = ", ".join(f"{height}×{width} ({where})" for (height, width), where in list(sizes.items())[:3])
        raise ValueError(f"the images differ in size: {examples}; resize them to one height and width")
    channels = max(image.shape[2] for _, image in images)
    return np.stack([image if image.shape[2] == channels else image.repeat(channels, axis=2) for _, image in images])


def _from_arrays(arrays: Arrays) -> ImageSource:
    if len(arrays) not in (2, 4):
        raise ValueError(f"a source of arrays is (x, y) or (x, y, x_test, y_test), not {len(arrays)} things")
    pairs = [_checked(*arrays[:2])] + ([_checked(*arrays[2:])] if len(arrays) == 4 else [])
    shapes = "".join(f"{x.shape}" for x, _ in pairs)  # unlike files, the bytes of an array do not tell its shape
    content = _hash([shapes.encode(), *(_bytes(part) for pair in pairs for part in pair)])
    if len(pairs) == 2:
        (x, labels), (x_test, test_labels) = pairs
        if x.shape[1:] != x_test.shape[1:]:
            raise ValueError(f"training images have shape {x.shape[1:]}, test images {x_test.shape[1:]}")
        classes, y, y_test = _number_classes(labels, test_labels)
        return ImageSource("arrays", ImageSet(x, y), ImageSet(x_test, y_test), classes, content)
    x, labels = pairs[0]
    classes, y, _ = _number_classes(labels, labels[:0])
    return ImageSource("arrays", *_hold_out(x, y), classes, content)


def _checked(x: Any, y: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        raise ValueError(f"images must be uint8 of shape [N, H, W] or [N, H, W, C], not {x.dtype} of shape {x.shape}")
    if not np.issubdtype(y.dtype, np.integer) or y.shape != x.shape[:1]:
        raise ValueError(f"labels must be {len(x)} integers, one per image, not {y.dtype} of shape {y.shape}")
    # PyTorch shares the memory of writable arrays without negative strides only; others are copied
    x = np.require(x, requirements=("C", "W"))
    return (x if x.ndim == 4 else x[..., None]), y.astype(np.int64)


def _number_classes(
    y: Sequence[Any] | NDArray[Any], y_test: Sequence[Any] | NDArray[Any]
) -> tuple[list[Any], Any, Any]:
    """The sorted labels of the training split, and both splits' labels as their positions in it."""
    classes, numbers = np.unique(np.asarray(y), return_inverse=True)
    test = np.asarray(y_test)
    if len(test) and not np.isin(test, classes).all():
        unknown = sorted(set(test.tolist()) - set(classes.tolist()))
        raise ValueError(f"the test split has classes that the training split lacks: {unknown[:5]}")
    test_numbers = np.searchsorted(classes, test) if len(test) else np.zeros(0)
    return classes.tolist(), numbers.astype(np.int64), test_numbers.astype(np.int64)


def _hold_out(x: NDArray[np.uint8], y: NDArray[np.int64], fraction: float = 0.1) -> tuple[ImageSet, ImageSet]:
    """Split off the same share of every class, the same images each time, at least one if the class has two."""
    random = np.random.RandomState(0)
    held_out = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        count = max(1, round(fraction * len(members))) if len(members) > 1 else 0
        held_out[random.permutation(members)[:count]] = True
    return ImageSet(x[~held_out], y[~held_out]), ImageSet(x[held_out], y[held_out])


def _bytes(array: NDArray[Any]) -> bytes:
    """An array's bytes, the same whatever the order of bytes on this machine."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
