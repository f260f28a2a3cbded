"""A cache of decoded images: a machine decodes a source once, and all its processes share one copy in memory.

An entry of the cache is a folder: the arrays of both splits as .npy files, and the other facts of an ``ImageSource`` as
JSON. Processes map the images into memory instead of reading them, so that the operating system keeps them once for
all. Of a source that is larger than memory, an entry holds an index instead of the images; see
``streams.lazy_images``. Entries are written under another name and renamed when complete.

An entry is used only if the content of the files that it was made of, and its own, are what they were, and if nobody
else could have written it. Content is known by hashes; these are computed again only where a file's size, times or
place on the disk have changed, or where it was changed so shortly before that its times could not tell.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import platformdirs
from filelock import FileLock

from continual_metaopt.streams.images import ImageSet, ImageSource
from continual_metaopt.streams.lazy_images import FACTS, OFFSETS, RECORDS, LazyImages
from continual_metaopt.streams.private_folders import distrusted, private_folder, temporary_folder
from continual_metaopt.streams.source_files import open_regular

CACHE_VARIABLE = "CONTINUAL_METAOPT_CACHE"
DECODER_VERSION = 3  # to be raised whenever the same files come to mean other pixels, labels or splits
MAX_BYTES = 10 * 10**9  # of all entries together
CLOCK_TICK = 2 * 10**9  # ns; the coarsest times that file systems keep
SEAL = "seal.json"
ROOT = 0  # who can write anywhere
CONTENT = ("facts.json", "train_x.npy", "train_y.npy", "test_x.npy", "test_y.npy", FACTS, OFFSETS, RECORDS)
Seal = dict[str, Any]  # what is known of the content of files; see ``_seal``


class LargerThanMemory(Exception):
    """The decoded images take up more than the memory limit."""


def cache_folder() -> Path:
    """Return the folder of the entries, below the user's cache folder or the one that CONTINUAL_METAOPT_CACHE names."""
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
            moved makes another origin.
        decode: makes the images.

    Returns:
        What ``decode`` returned, here or in another process, perhaps under another name. The arrays ``x`` are mapped
        from the cache's files; what is written to them stays in this process.

    Raises:
        OSError: a file of the origin is not there.
        Exception: whatever ``decode`` raises; nothing is kept then.
    """
    key, files = _described(origin)
    return _decode_once(key, files, functools.partial(_seal, files), decode)


def _decode_once(
    key: str, files: list[str], seal_files: Callable[[], Seal], decode: Callable[[], ImageSource]
) -> ImageSource:
    entry = cache_folder() / key
    images = _use(entry, files)
    if images is not None:
        return images
    try:
        private_folder(entry.parent.resolve())
        # The operating system frees the lock of a process that dies. Lock files stay: if one were deleted while a
        # process waits for it, the next process would make another, and both would decode.
        lock = FileLock(f"{entry}.lock").acquire()
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        _warn_of(error, entry.parent)
        return decode()
    with lock:
        images = _use(entry, files)
        if images is not None:
            return images
        seal = seal_files()
        images = decode()
        try:
            if _stamp(files) != seal["stamp"]:  # a file was changed meanwhile, or downloaded
                return images
            with _begin(entry) as folder:
                _write(folder, images, seal)
        except OSError as error:
            _warn_of(error, entry.parent)
            return images
        _delete_least_recently_used(but=entry)
        return _read_if_whole(entry, files) or images


def decode_or_index_once(
    origin: Any, decode: Callable[[], ImageSource], index: Callable[[Path], ImageSource], memory_limit: int
) -> ImageSource:
    """Decode images, or index them if they are larger than memory, unless this machine has done so before.

    Args:
        origin: as for ``decode_once``, and so is what is returned.
        decode: makes the images, and raises ``LargerThanMemory`` if they are.
        index: writes an index into a folder that it is given, and returns the images.
        memory_limit: bytes that the decoded images may take up.

    Raises:
        OSError: the index cannot be written, or a file of the origin is not there.
        ValueError: a file was changed while the index was made.
        Exception: whatever ``decode`` and ``index`` raise; nothing is kept then.
    """
    key, files = _described(origin)
    entry, seal_files = cache_folder() / f"{key}-index", functools.cache(functools.partial(_seal, files))
    indexed = _use(entry, files)
    if indexed is not None and indexed.decoded_bytes > memory_limit:
        return indexed
    try:
        decoded = _decode_once(key, files, seal_files, decode)
        if decoded.decoded_bytes <= memory_limit:
            return decoded
    except LargerThanMemory:
        pass
    return indexed or _index_once(entry, files, seal_files, index)


def _index_once(
    entry: Path, files: list[str], seal_files: Callable[[], Seal], index: Callable[[Path], ImageSource]
) -> ImageSource:
    try:
        private_folder(entry.parent.resolve())
        with FileLock(f"{entry}.lock"):
            images = _use(entry, files)
            if images is not None:
                return images
            with _begin(entry) as folder:
                seal = seal_files()
                _write(folder, index(folder), seal)
                if _stamp(files) != seal["stamp"]:
                    raise ValueError("files were changed while they were read; begin again when they are complete")
            _delete_least_recently_used(but=entry)
            return _read(entry, files)
    except (OSError, NotImplementedError) as error:
        raise OSError(
            f"images larger than memory_limit cannot be indexed in '{entry.parent}' ({error}); make room there, set "
            f"{CACHE_VARIABLE} to another folder, or raise memory_limit"
        ) from error


def _described(origin: Any) -> tuple[str, list[str]]:
    """Name an entry, and the files that it is made of; Pillow is part of what decodes."""
    files: list[str] = []

    def resolve(file: Path) -> str:
        files.append(os.path.realpath(file))
        return files[-1]

    description = json.dumps([DECODER_VERSION, PIL.__version__, origin], default=resolve)
    return hashlib.sha256(description.encode()).hexdigest()[:32], files


def _seal(files: Sequence[str]) -> Seal:
    """Hash what files hold, and note when, and what tells that it still holds."""
    began = time.time_ns()
    stamp = _stamp(files)
    digest = hashlib.sha256()
    for file in files:
        with open_regular(Path(file)) as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return {"stamp": stamp, "content": digest.hexdigest(), "computed": began}


def _stamp(files: Sequence[str]) -> list[Any]:
    """Hash what changes when the content of a file does, and tell the time of the last change, in nanoseconds.

    Nobody can set the time at which a file's status changed, as one can its modification time.
    """
    digest, last = hashlib.sha256(), 0
    for file in files:
        status = os.stat(file)  # noqa: PTH116
        digest.update(b"%d %d %d %d," % (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
        last = max(last, status.st_ctime_ns)
    return [digest.hexdigest(), last]


def _still(seal: Seal, files: Sequence[str]) -> Seal | None:
    """Return the seal, or a newer one, if files hold what they held; None if they do not."""
    stamp = _stamp(files)
    if seal["stamp"] == stamp and stamp[1] + CLOCK_TICK < seal["computed"]:
        return seal
    newer = _seal(files)
    return newer if newer["content"] == seal["content"] else None


def _use(entry: Path, files: Sequence[str]) -> ImageSource | None:
    """Read the images of an entry, which counts as used now, and say again what was left out of them."""
    images = _read_if_whole(entry, files)
    if images is not None:
        with contextlib.suppress(OSError):  # a cache that others have filled may be read-only
            os.utime(entry)
        for message in images.left_out:
            warnings.warn(message, stacklevel=3)
    return images


def _read_if_whole(entry: Path, files: Sequence[str]) -> ImageSource | None:
    """Read the images of an entry; None if it is not there, damaged, somebody else's, or of other files."""
    try:
        return _read(entry, files)
    except Exception:  # NumPy raises many kinds for a damaged file
        return None


def _read(entry: Path, files: Sequence[str]) -> ImageSource:
    if distrusted(entry.parent, ROOT) or distrusted(entry, ROOT):
        raise PermissionError(f"'{entry}' may be somebody else's")
    seals = json.loads((entry / SEAL).read_text(encoding="ascii"))
    newer = {"origin": _still(seals["origin"], files), "entry": _still(seals["entry"], _content(entry))}
    if None in newer.values():
        raise ValueError(f"'{entry}' is damaged, or its files have changed")
    if newer != seals:
        with contextlib.suppress(OSError):  # as above
            temporary = entry.with_name(f".{entry.name}.{os.getpid()}.{SEAL}")
            temporary.write_text(json.dumps(newer), encoding="ascii")
            temporary.replace(entry / SEAL)
    facts = json.loads((entry / "facts.json").read_text(encoding="ascii"))
    is_lazy = facts.pop("lazy")
    splits: dict[str, Any] = {}
    for split in ("train", "test"):
        # Mode "c", copy on write, shares memory as "r" does, until something is written. But NumPy calls such arrays
        # writable, and PyTorch makes tensors without complaint of writable arrays only.
        x = np.load(entry / f"{split}_x.npy", mmap_mode="c")
        splits[split] = ImageSet(LazyImages(entry, x) if is_lazy else x, np.load(entry / f"{split}_y.npy"))
    return ImageSource(**splits, **facts)


def _content(folder: Path) -> list[str]:
    """List the files of an entry without its seal."""
    return [str(folder / name) for name in CONTENT if (folder / name).exists()]


@contextlib.contextmanager
def _begin(entry: Path) -> Iterator[Path]:
    """Give a folder to write an entry to, which becomes the entry in the end; an error leaves nothing of it."""
    for left_over in entry.parent.glob(f".{entry.name}.*"):  # by a process that died
        left_over.unlink() if left_over.is_file() else shutil.rmtree(left_over, ignore_errors=True)
    temporary = entry.with_name(f".{entry.name}.new")
    try:
        temporary.mkdir(mode=0o700)
        yield temporary
        _delete(entry)  # if it is there, it is damaged, or of other content
        temporary.rename(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: Path, images: ImageSource, origin: Seal) -> None:
    for split, part in (("train", images.train), ("test", images.test)):
        for name, array in (("x", part.x.rows if isinstance(part.x, LazyImages) else part.x), ("y", part.y)):
            with (folder / f"{split}_{name}.npy").open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())  # or a crash of the machine might leave a whole file of zeros
    facts = {name: getattr(images, name) for name in ("name", "classes", "content_hash", "left_out")}
    facts["lazy"] = isinstance(images.train.x, LazyImages)
    (folder / "facts.json").write_text(json.dumps(facts), encoding="ascii")
    (folder / SEAL).write_text(json.dumps({"origin": origin, "entry": _seal(_content(folder))}), encoding="ascii")


def _delete_least_recently_used(but: Path) -> None:
    """Keep the entries within ``MAX_BYTES``; what processes have mapped stays in their memory."""
    with contextlib.suppress(OSError):  # another process may be deleting too
        folders = [path for path in but.parent.iterdir() if re.fullmatch("[0-9a-f]{32}(-index)?", path.name)]
        total = 0
        for folder in sorted(filter(_is_entry, folders), key=lambda path: path.stat().st_mtime_ns, reverse=True):
            total += sum(file.stat().st_size for file in folder.iterdir())
            if total > MAX_BYTES and folder != but:
                _delete(folder)


def _is_entry(folder: Path) -> bool:
    """Tell whether all that a folder holds was written here."""
    return folder.is_dir() and not folder.is_symlink() and {file.name for file in folder.iterdir()} <= {*CONTENT, SEAL}


def _delete(entry: Path) -> None:
    """Delete an entry as a whole; not at all under Windows while a process has it mapped."""
    old = entry.with_name(f".{entry.name}.old")
    with contextlib.suppress(OSError):
        if _is_entry(entry):
            entry.rename(old)
            shutil.rmtree(old)


def _warn_of(error: Exception, folder: Path) -> None:
    warnings.warn(
        f"decoded images cannot be kept in '{folder}' ({error}), so every process decodes them and holds a copy of its "
        f"own; make room there, or set {CACHE_VARIABLE} to a folder of your own that can be written",
        stacklevel=3,
    )
