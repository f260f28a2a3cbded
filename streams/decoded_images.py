"""A cache of decoded images: a machine decodes a source once, and all its processes share one copy in memory.

An entry of the cache is a folder: the arrays of both splits as .npy files, and the other facts of an ``ImageSource`` as
JSON. Processes map the images into memory instead of reading them, so that the operating system keeps them once for
all. Of a source that is larger than memory, an entry holds an index instead of the images; see
``streams.lazy_images``. Entries are written under another name, renamed when complete, and never changed.
"""

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import platformdirs
from filelock import FileLock
from numpy.typing import NDArray

from streams.images import ImageSet, ImageSource
from streams.lazy_images import LazyImages
from streams.private_folders import temporary_folder

CACHE_VARIABLE = "CONTINUAL_METAOPT_CACHE"
DECODER_VERSION = 2  # to be raised whenever the same files come to mean other pixels, labels or splits
MAX_BYTES = 10 * 10**9  # of all entries together


class LargerThanMemory(Exception):
    """The decoded images take up more than the memory limit."""


def cache_folder() -> Path:
    """The folder of the entries, below the user's cache folder or the one that CONTINUAL_METAOPT_CACHE names."""
    chosen = os.environ.get(CACHE_VARIABLE)
    try:
        folder = Path(chosen) if chosen else platformdirs.user_cache_path("continual-metaopt", appauthor=False)
        folder = folder.expanduser()
    except RuntimeError:  # a user without a home
        folder = temporary_folder("cache")
    return folder / "decoded_images"


def decode_once(origin: Any, decode: Callable[[], ImageSource]) -> ImageSource:
    """Decode images, unless this machine has done so before.

    If another process is decoding the same images, this one waits for it. Where the cache cannot be written, a warning
    says so, and the images are decoded in memory.

    Args:
        origin: all that the images depend on, as nested lists of plain values and of the paths of files. A file that is
            moved, or has another size or modification time, makes another origin; its content is not read.
        decode: makes the images.

    Returns:
        What ``decode`` returned, here or in another process, perhaps under another name. The arrays ``x`` are mapped
        from the cache's files; what is written to them stays in this process.

    Raises:
        OSError: a file of the origin is not there.
        Exception: whatever ``decode`` raises; nothing is kept then.
    """
    return _decode_once(_key(origin), origin, decode)


def _decode_once(key: str, origin: Any, decode: Callable[[], ImageSource]) -> ImageSource:
    entry = cache_folder() / key
    images = _use(entry)
    if images is not None:
        return images
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        # The operating system frees the lock of a process that dies. Lock files stay: if one were deleted while a
        # process waits for it, the next process would make another, and both would decode.
        lock = FileLock(f"{entry}.lock").acquire()
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        _warn_of(error, entry.parent)
        return decode()
    with lock:
        images = _use(entry)
        if images is not None:
            return images
        images = decode()
        try:
            if _key(origin) != key:  # a file was changed meanwhile, or downloaded
                return images
            with _begin(entry) as folder:
                _write(folder, images)
        except OSError as error:
            _warn_of(error, entry.parent)
            return images
        _delete_least_recently_used(but=entry)
        return _read(entry) or images


def decode_or_index_once(
    origin: Any, decode: Callable[[], ImageSource], index: Callable[[Path], ImageSource], memory_limit: int
) -> ImageSource:
    """Decode images, or index them if they are larger than memory, unless this machine has done so before.

    Args:
        origin: as for ``decode_once``.
        decode: likewise; raises ``LargerThanMemory`` if the images are.
        index: writes an index into a folder that it is given, and returns the images.
        memory_limit: bytes that the decoded images may take up.

    Returns:
        What ``decode`` or ``index`` returned, here or in another process, perhaps under another name.

    Raises:
        OSError: the index cannot be written, or a file of the origin is not there.
        ValueError: a file was changed while the index was made.
        Exception: whatever ``decode`` and ``index`` raise; nothing is kept then.
    """
    key = _key(origin)
    entry = cache_folder() / f"{key}-index"
    indexed = _use(entry)
    if indexed is not None and indexed.decoded_bytes > memory_limit:
        return indexed
    try:
        decoded = _decode_once(key, origin, decode)
        if decoded.decoded_bytes <= memory_limit:
            return decoded
    except LargerThanMemory:
        pass
    return indexed or _index_once(entry, key, origin, index)


def _index_once(entry: Path, key: str, origin: Any, index: Callable[[Path], ImageSource]) -> ImageSource:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            images = _use(entry)
            if images is not None:
                return images
            with _begin(entry) as folder:
                _write(folder, index(folder))
                if _key(origin) != key:
                    raise ValueError("files were changed while they were read; begin again when they are complete")
            _delete_least_recently_used(but=entry)
            return _read_whole(entry)
    except (OSError, NotImplementedError) as error:
        raise OSError(
            f"images larger than memory_limit cannot be indexed in '{entry.parent}' ({error}); make room there, set "
            f"{CACHE_VARIABLE} to another folder, or raise memory_limit"
        ) from error


def _key(origin: Any) -> str:
    """The name of an entry; Pillow is part of what decodes."""
    description = json.dumps([DECODER_VERSION, PIL.__version__, origin], default=_identity)
    return hashlib.sha256(description.encode()).hexdigest()[:32]


def _identity(file: Path) -> list[Any]:
    status = file.stat()
    return [os.path.realpath(file), status.st_size, status.st_mtime_ns]


def _use(entry: Path) -> ImageSource | None:
    """Images of an entry, which counts as used now; says again what was left out when they were decoded."""
    images = _read(entry)
    if images is not None:
        with contextlib.suppress(OSError):  # a cache that others have filled may be read-only
            os.utime(entry)
        for message in images.left_out:
            warnings.warn(message, stacklevel=3)
    return images


def _read(entry: Path) -> ImageSource | None:
    """Images of an entry; None if it is not there or damaged."""
    try:
        return _read_whole(entry)
    except Exception:  # NumPy raises many kinds for a damaged file
        return None


def _read_whole(entry: Path) -> ImageSource:
    facts = json.loads((entry / "facts.json").read_text(encoding="ascii"))
    read = _read_lazily if facts.pop("lazy") else _map
    train, test = (ImageSet(read(entry, split), np.load(entry / f"{split}_y.npy")) for split in ("train", "test"))
    return ImageSource(train=train, test=test, **facts)


def _map(entry: Path, split: str) -> NDArray[np.uint8]:
    # Mode "c", copy on write, shares memory as "r" does, until something is written. But NumPy calls such arrays
    # writable, and PyTorch makes tensors without complaint of writable arrays only.
    images: NDArray[np.uint8] = np.load(entry / f"{split}_x.npy", mmap_mode="c")
    return images


def _read_lazily(entry: Path, split: str) -> LazyImages:
    return LazyImages(entry, np.load(entry / f"{split}_x.npy", mmap_mode="r"))


@contextlib.contextmanager
def _begin(entry: Path) -> Iterator[Path]:
    """A folder to write an entry to, which becomes the entry in the end; nothing stays of it after an error."""
    for left_over in entry.parent.glob(f".{entry.name}.*"):  # by a process that died
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = entry.with_name(f".{entry.name}.{os.getpid()}.new")
    try:
        temporary.mkdir()
        yield temporary
        _delete(entry)  # if it is there, it is damaged
        temporary.rename(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: Path, images: ImageSource) -> None:
    for split, part in (("train", images.train), ("test", images.test)):
        for name, array in (("x", part.x.rows if isinstance(part.x, LazyImages) else part.x), ("y", part.y)):
            with (folder / f"{split}_{name}.npy").open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())  # or a crash of the machine might leave a whole file of zeros
    facts = {name: getattr(images, name) for name in ("name", "classes", "content_hash", "left_out")}
    facts["lazy"] = isinstance(images.train.x, LazyImages)
    (folder / "facts.json").write_text(json.dumps(facts), encoding="ascii")


def _delete_least_recently_used(but: Path) -> None:
    """Keep the entries within ``MAX_BYTES``; what processes have mapped stays in their memory."""
    with contextlib.suppress(OSError):  # another process may be deleting too
        folders = [path for path in but.parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
        total = 0
        for folder in sorted(folders, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            total += sum(file.stat().st_size for file in folder.iterdir())
            if total > MAX_BYTES and folder != but:
                _delete(folder)


def _delete(entry: Path) -> None:
    """Delete an entry as a whole; not at all under Windows while a process has it mapped."""
    old = entry.with_name(f".{entry.name}.{os.getpid()}.old")
    with contextlib.suppress(OSError):
        entry.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def _warn_of(error: Exception, folder: Path) -> None:
    warnings.warn(
        f"decoded images cannot be kept in '{folder}' ({error}), so every process decodes them and holds a copy of its "
        f"own; make room there, or set {CACHE_VARIABLE} to a folder that can be written",
        stacklevel=3,
    )
