"""Sources: where a stream's images come from.

Images are kept decoded in memory as uint8, one array per split; those that come from files are decoded once for all
processes of a machine. Of parquet files and image folders that take up more than ``memory_limit`` when decoded, images
stay encoded until they are needed, and all of them are decoded once before, to see that they can be. A source that has
no test split of its own gets one: a tenth of its images, the same ones every time.
"""

import contextlib
import functools
import gzip
import hashlib
import importlib.metadata
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.streams.array_files import read_arrays
from continual_metaopt.streams.decoded_images import LargerThanMemory, decode_once, decode_or_index_once
from continual_metaopt.streams.images import ImageSet, ImageSource
from continual_metaopt.streams.lazy_images import MAX_SIZE, Decoding, IndexWriter, LazyImages, decode, file_record
from continual_metaopt.streams.registry import UnknownNameError, unknown_name
from continual_metaopt.streams.source_files import (
    FETCH_LFS,
    LFS_POINTER,
    VALIDATION,
    image_files,
    open_regular,
    parquet_files,
)

MEMORY_LIMIT = 2 * 10**9
LEAST_MEMORY_LIMIT = 10**6
LABEL_COLUMNS = ("fine_label", "label", "labels")
IMAGE_COLUMNS = ("image", "img")  # where there are several columns of images
AS_STORED = "as_stored"
READ_BUFFER = 2**20  # bytes; without it, and with pre_buffer, pyarrow reads a group of rows at once
READ_AT_ONCE = 256  # rows

# name -> (class in torchvision.datasets, its arguments, what the files are called, where they come from)
TORCHVISION: dict[str, tuple[str, dict[str, str], str, str]] = {
    "cifar10": ("CIFAR10", {}, "cifar-10-batches-py/", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "cifar100": ("CIFAR100", {}, "cifar-100-python/", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "mnist": ("MNIST", {}, "MNIST/raw/", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "fashion_mnist": ("FashionMNIST", {}, "FashionMNIST/raw/", "https://github.com/zalandoresearch/fashion-mnist"),
    "emnist": (
        "EMNIST",
        {"split": "balanced"},
        "EMNIST/raw/",
        "https://www.nist.gov/itl/products-and-services/emnist-dataset",
    ),
    "svhn": ("SVHN", {}, "train_32x32.mat, and test_32x32.mat", "http://ufldl.stanford.edu/housenumbers/"),
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
        source: "digits" (ships with scikit-learn), "cifar100", "cifar10", "mnist", "fashion_mnist", "emnist", "svhn"
            (through torchvision), "parquet:FILE_OR_FOLDER" (Hugging Face's image layout), "folder:DIR"
            (``[train|test/]CLASS/IMAGE``), "npz:FILE" (arrays of the names x and y, and perhaps x_test and y_test), or
            arrays ``(x, y)`` or ``(x, y, x_test, y_test)`` with x uint8 [N, H, W] or [N, H, W, C].
            Splits of files are found as ``streams.source_files`` says; where files are called test and validation,
            those called test are the test split, and the others are not used. Images are turned upright as their EXIF
            data says; "parquet+as_stored:…" and "folder+as_stored:…" leave them as they are stored.
            "parquet+resize=32:…" and "folder+resize=32:…" scale the shorter side to 32 and cut out the middle, 32 × 32;
            "folder+as_stored+resize=32:…" does both. Arrays are not resized.
        data_root: the folder of torchvision's files.
        skip_unreadable: leave images out that cannot be decoded, instead of stopping with their names.
        memory_limit: bytes; where the images of parquet files or of a folder take up more when decoded, ``x`` of both
            splits are ``LazyImages``.

    Raises:
        UnknownNameError: no such source.
        FileNotFoundError: the files are not there and cannot be downloaded.
        OSError: images larger than ``memory_limit`` cannot be indexed.
        ValueError: images of different sizes, an unknown option before the path or a size out of range, an unreadable
            image or file, labels that cannot be classes, splits that are not clear, arrays of the wrong type or shape,
            or a memory limit that is too small.

    Example:
        >>> digits = load_source("digits")
        >>> digits.input_shape, len(digits.train.y), len(digits.test.y)
        ((1, 8, 8), 1438, 359)
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
    """Collect whatever named source is loaded in the block, by the arguments of ``load_source``, for other machines."""
    loaded: dict[SourceArguments, ImageSource] = {}
    _watched.append(loaded)
    try:
        yield loaded
    finally:
        _watched.remove(loaded)


def receive_source(arguments: SourceArguments, receive: Callable[[], ImageSource]) -> None:
    """Take a source from another machine, which has loaded it, from now on in this process.

    ``arguments`` are those of ``load_source`` there, as ``sources_loaded`` gives them; ``receive`` returns what it
    returned, and is called when the source is first asked for.
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
    kind, *options = kind.split("+")
    if source in TORCHVISION:
        folder = Path(data_root).expanduser() / TORCHVISION[source][2]
        there = sorted(file for file in folder.rglob("*") if file.is_file())
        read = functools.partial(_torchvision, source, data_root)
        # torchvision downloads what is not there; without files nothing tells whether images kept are those
        images = decode_once([kind, there], read) if there else read()
    elif path and kind in ("parquet", "folder"):
        decoding = _decoding(options)
        found = (parquet_files if kind == "parquet" else image_files)(Path(path).expanduser())
        for message in found.left_out:
            warnings.warn(message, stacklevel=3)
        files = _Files(kind, found.splits, found.taken.get(VALIDATION), decoding, skip_unreadable)
        images = decode_or_index_once(
            [kind, files.splits, skip_unreadable, decoding],
            functools.partial(_decode_all, files, memory_limit),
            functools.partial(_index_all, files),
            memory_limit,
        )
        images = replace(images, splits=found.taken, left_out=found.left_out + images.left_out)
    elif path and kind == "npz" and not options:
        images = _from_arrays(cast(Arrays, read_arrays(source)))
    else:
        known = [*NAMED_SOURCES, "parquet:FILE_OR_FOLDER", "folder:DIR", "npz:FILE"]
        message = unknown_name("source", source, known)
        if Path(source).expanduser().is_dir():
            message += f". For the files in this folder write folder:{source} (images) or parquet:{source} (tables)"
        raise UnknownNameError(message)
    return replace(images, name=source)  # whoever decoded the files may have written their path in another way


def _decoding(options: list[str]) -> Decoding:
    """Read the options of a source: "as_stored", "resize=32"."""
    others = "+".join(option for option in options if option != AS_STORED)
    resize = re.fullmatch("resize=([0-9]{1,4})", others)
    size = int(resize[1]) if resize else 0
    if others and not 1 <= size <= MAX_SIZE:
        raise ValueError(
            f"the options of a source of files are {AS_STORED} and resize=SIZE, where SIZE is a whole number from 1 to "
            f"{MAX_SIZE}, not '{others}'"
        )
    return AS_STORED in options, size


def _digits() -> ImageSource:
    # scikit-learn's file alone, since importing the package takes longer than a short run
    path = importlib.metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    with gzip.open(str(path), "rt") as file:
        digits = np.loadtxt(file, delimiter=",")
    x = np.round(digits[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[..., None]
    y = digits[:, -1].astype(np.int64)
    # scikit-learn has no test split; a fifth is held out, since a tenth of so few images would be noisy
    train, test = _hold_out(x, y, fraction=0.2)
    return ImageSource("digits", train, test, list(range(10)), _hash([_bytes(x), _bytes(y)]))


def _torchvision(name: str, data_root: str) -> ImageSource:
    arrays = []
    for train in (True, False):
        split = _torchvision_split(name, data_root, train)
        x, y = (split.data.transpose(0, 2, 3, 1), split.labels) if name == "svhn" else (split.data, split.targets)
        x = np.ascontiguousarray(x, dtype=np.uint8)
        arrays.append((x if x.ndim == 4 else x[..., None], np.asarray(y, dtype=np.int64)))
    (x, labels), (x_test, test_labels) = arrays
    content = _hash(_bytes(part) for pair in arrays for part in pair)
    classes, y, y_test = _number_classes(labels.tolist(), test_labels.tolist())
    return ImageSource(name, ImageSet(x, y), ImageSet(x_test, y_test), classes, content)


def _torchvision_split(name: str, data_root: str, train: bool) -> Any:
    """Load one split of a data set of torchvision, downloaded if it is not there."""
    import torchvision

    class_name, arguments, files, address = TORCHVISION[name]
    which = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
    dataset = functools.partial(getattr(torchvision.datasets, class_name), data_root, **which, **arguments)
    try:
        return dataset(download=False)
    except RuntimeError:  # "not found or corrupted"
        pass
    try:
        return dataset(download=True)
    except Exception as error:  # torchvision raises whatever its downloader met
        raise FileNotFoundError(
            f"source '{name}' was not found under '{data_root}' and could not be downloaded ({error}). "
            f"Put its files there as {Path(data_root) / files} (from {address}), or point data_root to the folder "
            f"that holds {files}. Without network, the source 'digits' always works, as do 'parquet:…' and 'folder:…'."
        ) from error


@dataclass(frozen=True)
class _Files:
    """Files of encoded images, and how they are to be read."""

    kind: str  # "parquet" or "folder"
    splits: list[list[Any]]  # the files of the training and of the test split; of folders, each with its class
    validation: str | None  # names of files for validation, which are not used
    decoding: Decoding
    skip_unreadable: bool

    @property
    def one_each(self) -> bool:
        """Whether each image is a file of its own."""
        return self.kind == "folder"

    def rows(self, split: list[Any]) -> Iterator[Row]:
        """Read a split, an image at a time."""
        return _image_file_rows(split) if self.one_each else _parquet_rows(split)


@contextlib.contextmanager
def _opened(shard: Path) -> Iterator[Any]:
    """Open a parquet file; whatever is wrong with it is told with its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_regular(shard) as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"cannot read '{shard}': {FETCH_LFS}")
    try:
        with pq.ParquetFile(shard, buffer_size=READ_BUFFER, pre_buffer=False) as table:
            yield table
    except (pa.ArrowException, OSError) as error:  # of the latter kind is what pyarrow says of damaged pages
        raise ValueError(
            f"cannot read '{shard}' ({str(error).strip()}); it is damaged or not a parquet file"
        ) from error


def _parquet_rows(shards: list[Path]) -> Iterator[Row]:
    """Read shards row by row; of a group of rows, which may be a whole shard, a part is in memory at a time."""
    for shard in shards:
        with _opened(shard) as file:
            image_column, label_column = _columns(file.schema_arrow, shard)
            n_classes = _n_class_names(file.schema_arrow, label_column)
            row = 0
            for batch in file.iter_batches(READ_AT_ONCE, columns=[f"{image_column}.bytes", label_column]):
                images, labels = batch.column(image_column).field("bytes"), batch.column(label_column).to_pylist()
                for image, label in zip(images, labels, strict=True):
                    if label is None:
                        raise ValueError(f"{shard.name}, row {row} has no label in the column '{label_column}'")
                    if n_classes is not None and label >= n_classes:
                        raise ValueError(
                            f"{shard.name}, row {row} has the label {label}, but by the file's own description the "
                            f"column '{label_column}' has the labels 0 to {n_classes - 1}"
                        )
                    yield f"{shard.name}, row {row}", image.as_py() or b"", label
                    row += 1


def _count_parquet_rows(shards: list[Path]) -> int:
    n = 0
    for shard in shards:
        with _opened(shard) as file:
            if file.metadata.num_rows > shard.stat().st_size:
                raise ValueError(f"'{shard}' says that it holds {file.metadata.num_rows:,} images, more than its bytes")
            n += file.metadata.num_rows
    return n


def _columns(schema: Any, shard: Path) -> tuple[str, str]:
    """Find the image and the label column of a shard in Hugging Face's layout."""
    import pyarrow.types as types

    images = [column.name for column in schema if types.is_struct(column.type) and _has_bytes(column.type)]
    if len(images) > 1:
        images = [column for column in images if column in IMAGE_COLUMNS]
    label = next((schema.field(name) for name in LABEL_COLUMNS if schema.names.count(name) == 1), None)
    if len(images) != 1 or label is None:
        raise ValueError(
            f"'{shard}' is not in Hugging Face's image layout: expected a column {{bytes, path}} of images (named "
            f"{' or '.join(IMAGE_COLUMNS)} if there are several) and one of labels named one of "
            f"{', '.join(LABEL_COLUMNS)}, found {', '.join(schema.names)}"
        )
    if not types.is_integer(label.type):
        raise ValueError(
            f"the labels of '{shard}', in the column '{label.name}', are {label.type}, not integers; number the classes"
        )
    return images[0], label.name


def _has_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    number = kind.get_field_index("bytes")
    return number >= 0 and (types.is_binary(kind.field(number).type) or types.is_large_binary(kind.field(number).type))


def _n_class_names(schema: Any, column: str) -> int | None:
    """Count the classes of a column by Hugging Face's description in the file; None if there is none."""
    try:
        return len(json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _image_file_rows(files: list[tuple[Path, str]]) -> Iterator[Row]:
    for file, label in files:
        with open_regular(file) as opened:
            yield str(file), opened.read(), label


def _decode_all(files: _Files, memory_limit: int) -> ImageSource:
    """Decode images into memory, unless they are too large."""
    n, images = sum(map(len if files.one_each else _count_parquet_rows, files.splits)), []

    def keep(row: Row, image: NDArray[np.uint8]) -> None:
        images.append(image)
        if n * image.size > memory_limit:  # seen at the first image, unless grey ones come before the first in colour
            raise LargerThanMemory

    seen = _scan(files, keep)
    x = np.empty((len(images), *seen.image_shape), np.uint8)
    for place in range(len(images)):
        x[place], images[place] = images[place], x[:0]  # each image is in memory once; a grey one gets equal channels
    return _divide(x, x.__getitem__, seen)


def _index_all(files: _Files, folder: Path) -> ImageSource:
    """Decode images one by one to see that they can be, and write their index into a folder."""
    with IndexWriter(folder) as writer:

        def keep(row: Row, image: NDArray[np.uint8]) -> None:
            where, content, _ = row
            writer.add(file_record(where, content) if files.one_each else content)

        seen = _scan(files, keep)
        x = writer.finish(seen.image_shape, files.one_each, files.decoding)
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


def _scan(files: _Files, keep: Callable[[Row, NDArray[np.uint8]], None]) -> _Seen:
    """Read and decode one image after the other, and give those that can be decoded to ``keep``."""
    seen, digest, changes = _Seen(), hashlib.sha256(), set[str]()
    for split, labels in zip(files.splits, seen.labels, strict=True):
        unreadable = []
        for row in files.rows(split):
            where, content, label = row
            digest.update(content)
            digest.update(str(label).encode())
            try:
                image, changed = _decode(where, content, files.decoding)
            except ValueError:
                if not files.skip_unreadable:
                    raise
                unreadable.append(where)
                continue
            changes |= changed
            seen.sizes.setdefault(image.shape[:2], where)
            if len(seen.sizes) == 3:  # as many as a message shows
                _refuse_sizes(seen.sizes, files.kind)
            seen.channels = max(seen.channels, image.shape[2])
            labels.append(label)
            keep(row, image)
        if unreadable:
            seen.left_out.append(f"{len(unreadable)} unreadable images are left out, the first at {unreadable[0]}")
            warnings.warn(seen.left_out[-1], stacklevel=2)
    if not seen.sizes:
        raise ValueError("not one of the images could be read")
    if len(seen.sizes) > 1:
        _refuse_sizes(seen.sizes, files.kind)
    for change in sorted(changes):  # the same bytes, read so, are other images
        digest.update(change.encode())
    _refuse_unknown(seen.labels, files.validation)
    seen.content_hash = digest.hexdigest()
    return seen


def _refuse_sizes(sizes: dict[tuple[int, ...], str], kind: str) -> None:
    examples = ", ".join(f"{height}×{width} ({where})" for (height, width), where in sizes.items())
    raise ValueError(
        f"the images differ in size: {examples}; to resize them, write for example {kind}+resize=32: at the "
        f"beginning of the source, instead of {kind}:"
    )


def _decode(where: str, content: bytes, decoding: Decoding) -> tuple[NDArray[np.uint8], set[str]]:
    try:
        return decode(content, *decoding)
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise ValueError(
            f"cannot read the image at {where} ({error}); with the stream's option skip_unreadable, such images are "
            "left out"
        ) from error


def _divide(x: NDArray[np.uint8] | LazyImages, part: Callable[[Any], Any], seen: _Seen) -> ImageSource:
    """Make a source of the images of both splits, one after the other; ``part`` gives some of them."""
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
    pairs = [_checked(*arrays[i : i + 2]) for i in range(0, len(arrays), 2)]
    shapes = "".join(f"{x.shape}" for x, _ in pairs)  # unlike files, the bytes of an array do not tell its shape
    content = _hash([shapes.encode(), *(_bytes(part) for x, y in pairs for part in (x, y.astype(np.int64)))])
    labels = [y.tolist() for _, y in pairs] + [[]] * (2 - len(pairs))
    _refuse_unknown(labels)
    classes, y, y_test = _number_classes(*labels)
    if len(pairs) == 1:
        return ImageSource("arrays", *_hold_out(pairs[0][0], y), classes, content)
    (x, _), (x_test, _) = pairs
    if x.shape[1:] != x_test.shape[1:]:
        raise ValueError(f"training images have shape {x.shape[1:]}, test images {x_test.shape[1:]}")
    return ImageSource("arrays", ImageSet(x, y), ImageSet(x_test, y_test), classes, content)


def _checked(x: Any, y: Any) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        raise ValueError(f"images must be uint8 of shape [N, H, W] or [N, H, W, C], not {x.dtype} of shape {x.shape}")
    if x.ndim == 4 and x.shape[3] not in (1, 3) and (x.shape[1] in (1, 3) or x.shape[1] <= 4 < x.shape[3]):
        raise ValueError(
            f"images must be of shape [N, H, W, C]; {x.shape} seems to be [N, C, H, W], so give "
            "x.transpose(0, 2, 3, 1) instead of x"
        )
    if not np.issubdtype(y.dtype, np.integer) or y.shape != x.shape[:1]:
        raise ValueError(f"labels must be {len(x)} integers, one per image, not {y.dtype} of shape {y.shape}")
    # PyTorch shares the memory of writable arrays without negative strides only; others are copied
    x = np.require(x, requirements=("C", "W"))
    return (x if x.ndim == 4 else x[..., None]), y


def _refuse_unknown(labels: list[list[Any]], validation: str | None = None) -> None:
    """Refuse labels of a split below 0, unless the classes are −1 and 1; ``validation`` might be the test split."""
    if set(labels[0]) == {-1, 1}:
        return
    for split, found in zip(("training", "test"), labels, strict=True):
        below = sorted({label for label in found if isinstance(label, int) and label < 0})
        if below:
            remedy = "leave its samples out, or number the classes from 0"
            if split == "test" and validation:
                remedy = f"take the test files away, and the test split is {validation.removesuffix(', not used')}"
            raise ValueError(
                f"the {split} split has labels below 0, {below[:5]}, which usually mean that a label is not known; "
                f"{remedy}"
            )


def _number_classes(labels: list[Any], test_labels: list[Any]) -> tuple[list[Any], Any, Any]:
    """Sort the labels of the training split, and number both splits' labels by their positions among them."""
    classes = sorted(set(labels))
    number = {label: place for place, label in enumerate(classes)}
    unknown = sorted(set(test_labels) - number.keys())
    if unknown:
        raise ValueError(f"the test split has classes that the training split lacks: {unknown[:5]}")
    y, y_test = (np.array([number[label] for label in part], np.int64) for part in (labels, test_labels))
    return classes, y, y_test


def _held_out(y: NDArray[np.int64], fraction: float = 0.1) -> NDArray[np.bool_]:
    """Choose the same share of every class, the same images each time, at least one if the class has two."""
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
    """Return an array's bytes, the same whatever the order of bytes on this machine."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
