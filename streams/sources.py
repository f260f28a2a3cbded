"""Sources: where a stream's images come from.

Images are kept decoded in memory as uint8, one array per split; those that come from files are decoded once for all
processes of a machine. Of parquet files and image folders that take up more than ``memory_limit`` when decoded, images
stay encoded until they are needed, and all of them are decoded once before, to see that they can be. A source that has
no test split of its own gets one: a tenth of its images, the same ones every time.
"""

import contextlib
import functools
import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.decoded_images import LargerThanMemory, decode_once, decode_or_index_once
from streams.images import ImageSet, ImageSource
from streams.lazy_images import IndexWriter, LazyImages, decode, file_record
from streams.registry import UnknownNameError, unknown_name

MEMORY_LIMIT = 2 * 10**9
LEAST_MEMORY_LIMIT = 10**6
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
# Hugging Face's names of splits, in the order of preference for the test split
HELD_OUT = ("test|testing|eval|evaluation", "validation|valid|val|dev")
LABEL_COLUMNS = ("fine_label", "label", "labels")
READ_BUFFER = 2**20  # bytes; without it, and with pre_buffer, pyarrow reads a group of rows at once
READ_AT_ONCE = 256  # rows

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
SourceArguments = tuple[str, str, bool, int]  # of ``load_source``, of a source that has a name
Row = tuple[str, bytes, Any]  # where an image comes from, its encoded content, its label


def load_source(
    source: SourceSpec,
    data_root: str | Path = "data",
    skip_unreadable: bool = False,
    memory_limit: int = MEMORY_LIMIT,
) -> ImageSource:
    """Load a source; within a process, images are read once, and on a machine, files are decoded once.

    Args:
        source: "digits" (ships with scikit-learn), "cifar100", "cifar10", "mnist", "fashion_mnist", "emnist" (through
            torchvision), "parquet:FILE_OR_FOLDER" (Hugging Face's image layout), "folder:DIR" (``[train|test/]CLASS/
            IMAGE``), or arrays ``(x, y)`` or ``(x, y, x_test, y_test)`` with x uint8 [N, H, W] or [N, H, W, C]. Where
            files are called test and validation, those called test are the test split, and the others are not used.
        data_root: the folder of torchvision's files.
        skip_unreadable: leave images out that cannot be decoded, instead of stopping with their names.
        memory_limit: bytes; where the images of parquet files or of a folder take up more when decoded, ``x`` of both
            splits are ``LazyImages``.

    Raises:
        UnknownNameError: no such source.
        FileNotFoundError: the files are not there and cannot be downloaded.
        OSError: images larger than ``memory_limit`` cannot be indexed.
        ValueError: images of different sizes, an unreadable image, arrays of the wrong type or shape, or a memory limit
            that is too small.
    """
    if memory_limit < LEAST_MEMORY_LIMIT:
        raise ValueError(f"memory_limit must be at least {LEAST_MEMORY_LIMIT} bytes, not {memory_limit}")
    if not isinstance(source, str):
        return _from_arrays(source)
    arguments = (source, str(data_root), skip_unreadable, memory_limit)
    images = _received(arguments) if arguments in _senders else _load_named(*arguments)
    for loaded in _watched:
        loaded[arguments] = images
    return images


_watched: list[dict[SourceArguments, ImageSource]] = []
_senders: dict[SourceArguments, Callable[[], ImageSource]] = {}


@contextlib.contextmanager
def sources_loaded() -> Iterator[dict[SourceArguments, ImageSource]]:
    """Whatever named source is loaded in the block, by the arguments of ``load_source``, for other machines."""
    loaded: dict[SourceArguments, ImageSource] = {}
    _watched.append(loaded)
    try:
        yield loaded
    finally:
        _watched.remove(loaded)


def receive_source(arguments: SourceArguments, receive: Callable[[], ImageSource]) -> None:
    """From now on in this process, have a source from another machine, which has loaded it.

    Args:
        arguments: of ``load_source``, as ``sources_loaded`` gives them.
        receive: returns what ``load_source`` returned there; called when the source is first asked for.
    """
    _senders.setdefault(arguments, receive)


@functools.lru_cache(maxsize=2)
def _received(arguments: SourceArguments) -> ImageSource:
    return _senders[arguments]()


@functools.lru_cache(maxsize=2)
def _load_named(source: str, data_root: str, skip_unreadable: bool, memory_limit: int) -> ImageSource:
    if source == "digits":
        return _digits()
    kind, _, path = source.partition(":")
    if source in TORCHVISION:
        folder = Path(data_root).expanduser() / TORCHVISION[source][2]
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        read = functools.partial(_torchvision, source, data_root)
        # torchvision downloads what is not there; without files nothing tells whether images kept are those
        images = decode_once([kind, files], read) if files else read()
    elif path and kind == "parquet":
        images = _load_encoded(_parquet(Path(path).expanduser()), skip_unreadable, memory_limit)
    elif path and kind == "folder":
        images = _load_encoded(_image_folder(Path(path).expanduser()), skip_unreadable, memory_limit)
    else:
        known = [*NAMED_SOURCES, "parquet:FILE_OR_FOLDER", "folder:DIR"]
        raise UnknownNameError(unknown_name("source", source, known))
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
            f"that holds {files}. Without network, the source 'digits' always works, as do 'parquet:…' and 'folder:…'."
        ) from error


@dataclass(frozen=True)
class _EncodedFiles:
    """Files of encoded images.

    Attributes:
        kind: "parquet" or "folder".
        splits: the files of the training and of the test split, with whatever else ``rows`` wants to know of each.
        rows: reads a split, an image at a time.
        count: counts the images of a split.
        one_each: whether each image is a file of its own.
    """

    kind: str
    splits: list[list[Any]]
    rows: Callable[[list[Any]], Iterator[Row]]
    count: Callable[[list[Any]], int]
    one_each: bool


def _parquet(path: Path) -> _EncodedFiles:
    return _EncodedFiles("parquet", _parquet_shards(path), _parquet_rows, _count_parquet_rows, one_each=False)


def _parquet_shards(path: Path) -> list[list[Path]]:
    """The files of the training and of the test split: train-00000-of-00001.parquet, or train/0000.parquet."""
    if not path.exists():
        raise FileNotFoundError(f"no parquet file or folder at '{path}'; give the path of a .parquet file or a folder")
    shards = _sorted(path.glob("**/*.parquet"), path) if path.is_dir() else [path]
    if not shards:
        raise FileNotFoundError(f"the folder '{path}' holds no .parquet file")
    test, validation = (
        [
            shard
            for shard in shards
            if any(re.match(f"({names})(?![a-z])", part) for part in shard.relative_to(path).parts)
        ]
        for names in HELD_OUT
    )
    train = [shard for shard in shards if shard not in test and shard not in validation]
    if not train:
        raise FileNotFoundError(f"the folder '{path}' holds test shards only; the names of training shards: train-*")
    return [train, test or validation]


def _parquet_rows(shards: list[Path]) -> Iterator[Row]:
    """Of a group of rows, which may be a whole shard, a part is in memory at a time."""
    import pyarrow.parquet as pq

    for shard in shards:
        with pq.ParquetFile(shard, buffer_size=READ_BUFFER, pre_buffer=False) as file:
            image_column, label_column = _columns(file.schema_arrow, shard)
            row = 0
            for batch in file.iter_batches(READ_AT_ONCE, columns=[f"{image_column}.bytes", label_column]):
                images, labels = batch.column(image_column).field("bytes"), batch.column(label_column).to_pylist()
                for image, label in zip(images, labels, strict=True):
                    if label is None:
                        raise ValueError(f"{shard.name}, row {row} has no label in the column '{label_column}'")
                    yield f"{shard.name}, row {row}", image.as_py() or b"", label
                    row += 1


def _count_parquet_rows(shards: list[Path]) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(shard).num_rows for shard in shards)


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
        names = "|".join(HELD_OUT).split("|")
        test = next((path / name for name in names if (path / name).is_dir()), None)
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


def _image_folder(path: Path) -> _EncodedFiles:
    return _EncodedFiles("folder", _image_files(path), _image_file_rows, len, one_each=True)


def _image_file_rows(files: list[tuple[Path, str]]) -> Iterator[Row]:
    for file, label in files:
        yield str(file), file.read_bytes(), label


def _load_encoded(files: _EncodedFiles, skip_unreadable: bool, memory_limit: int) -> ImageSource:
    return decode_or_index_once(
        [files.kind, files.splits, skip_unreadable],
        functools.partial(_decode_all, files, skip_unreadable, memory_limit),
        functools.partial(_index_all, files, skip_unreadable),
        memory_limit,
    )


def _decode_all(files: _EncodedFiles, skip_unreadable: bool, memory_limit: int) -> ImageSource:
    """Decode images into memory, unless they are too large."""
    n, images = sum(map(files.count, files.splits)), []

    def keep(row: Row, image: NDArray[np.uint8]) -> None:
        images.append(image)
        if n * image.size > memory_limit:  # seen at the first image, unless grey ones come before the first in colour
            raise LargerThanMemory

    seen = _scan(files, skip_unreadable, keep)
    x = np.empty((len(images), *seen.image_shape), np.uint8)
    for place in range(len(images)):
        x[place], images[place] = images[place], x[:0]  # each image is in memory once; a grey one gets equal channels
    return _divide(x, x.__getitem__, seen)


def _index_all(files: _EncodedFiles, skip_unreadable: bool, folder: Path) -> ImageSource:
    """Decode images one by one to see that they can be, and write their index into a folder."""
    with IndexWriter(folder) as writer:

        def keep(row: Row, image: NDArray[np.uint8]) -> None:
            where, content, _ = row
            writer.add(file_record(where) if files.one_each else content)

        seen = _scan(files, skip_unreadable, keep)
        x = writer.finish(seen.image_shape, files.one_each)
    return _divide(x, x.part, seen)


@dataclass
class _Seen:
    """What is found out about encoded images while they are read."""

    labels: list[list[Any]] = field(default_factory=lambda: [[], []])
    sizes: dict[tuple[int, ...], str] = field(default_factory=dict)
    channels: int = 0
    content_hash: str = ""
    left_out: list[str] = field(default_factory=list)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        (height, width), *_ = self.sizes
        return height, width, self.channels


def _scan(files: _EncodedFiles, skip_unreadable: bool, keep: Callable[[Row, NDArray[np.uint8]], None]) -> _Seen:
    """Read and decode one image after the other, and give those that can be decoded to ``keep``."""
    seen, digest = _Seen(), hashlib.sha256()
    for split, labels in zip(files.splits, seen.labels, strict=True):
        unreadable = []
        for row in files.rows(split):
            where, content, label = row
            digest.update(content)
            digest.update(str(label).encode())
            image = _decode(where, content, skip_unreadable)
            if image is None:
                unreadable.append(where)
                continue
            seen.sizes.setdefault(image.shape[:2], where)
            if len(seen.sizes) == 3:  # as many as a message shows
                _refuse_sizes(seen.sizes)
            seen.channels = max(seen.channels, image.shape[2])
            labels.append(label)
            keep(row, image)
        if unreadable:
            seen.left_out.append(f"{len(unreadable)} unreadable images are left out, the first at {unreadable[0]}")
            warnings.warn(seen.left_out[-1], stacklevel=2)
    if not seen.sizes:
        raise ValueError("not one of the images could be read")
    if len(seen.sizes) > 1:
        _refuse_sizes(seen.sizes)
    seen.content_hash = digest.hexdigest()
    return seen


def _refuse_sizes(sizes: dict[tuple[int, ...], str]) -> None:
    examples = ", ".join(f"{height}×{width} ({where})" for (height, width), where in sizes.items())
    raise ValueError(f"the images differ in size: {examples}; resize them to one height and width")


def _decode(where: str, content: bytes, skip_unreadable: bool) -> NDArray[np.uint8] | None:
    try:
        return decode(content)
    except Exception as error:  # Pillow raises many kinds for a damaged file
        if skip_unreadable:
            return None
        raise ValueError(
            f"cannot read the image at {where} ({error}); pass skip_unreadable=True to go on without such images"
        ) from error


def _divide(x: NDArray[np.uint8] | LazyImages, part: Callable[[Any], Any], seen: _Seen) -> ImageSource:
    """Images of both splits, one after the other, as a source; ``part`` gives some of them."""
    classes, y, y_test = _number_classes(*seen.labels)
    if len(y_test):
        train, test = ImageSet(part(slice(len(y))), y), ImageSet(part(slice(len(y), None)), y_test)
    else:
        held_out = _held_out(y)
        train, test = (ImageSet(part(chosen), y[chosen]) for chosen in (~held_out, held_out))
    return ImageSource("", train, test, classes, seen.content_hash, seen.left_out)


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


def _held_out(y: NDArray[np.int64], fraction: float = 0.1) -> NDArray[np.bool_]:
    """The same share of every class, the same images each time, at least one if the class has two."""
    random = np.random.RandomState(0)
    held_out = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        count = max(1, round(fraction * len(members))) if len(members) > 1 else 0
        held_out[random.permutation(members)[:count]] = True
    return held_out


def _hold_out(x: NDArray[np.uint8], y: NDArray[np.int64], fraction: float = 0.1) -> tuple[ImageSet, ImageSet]:
    """Split off a share of every class as test split."""
    held_out = _held_out(y, fraction)
    return ImageSet(x[~held_out], y[~held_out]), ImageSet(x[held_out], y[held_out])


def _bytes(array: NDArray[Any]) -> bytes:
    """An array's bytes, the same whatever the order of bytes on this machine."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
