"""Images that stay encoded until they are needed, for sources that are larger than memory.

``LazyImages`` decodes what it is indexed with. ``ReadAhead`` reads it in the order of a stream, in which threads decode
what comes next while the learner is busy.

The encoded images are found through an index, a folder that is written once. Parquet has no access to a single row (the
rows of a group are compressed together), and streams present images in random order, so the index holds a copy of the
encoded images, one after the other, and where each begins. Of images that are files of their own it holds the paths.
"""

import hashlib
import io
import json
import math
import os
from array import array
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.streams.source_files import FETCH_LFS, LFS_POINTER, open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

RECORDS, OFFSETS, FACTS = "records.bin", "offsets.npy", "records.json"
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
ORIENTATION = 0x0112  # in EXIF data; what turns images upright whose value is 2, 3, …:
TURNS = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
MAX_SIZE = 1024  # pixels; to which images are resized
Decoding = tuple[bool, int]  # the arguments ``as_stored`` and ``size`` of ``decode``
MAX_THREADS = 4
MAX_AHEAD = 2048  # images; an engine asks for at most 1,000 at once
MAX_AHEAD_BYTES = 32 * 10**6
MAX_CHUNK = 64  # images that a thread decodes before it looks for other work


class LazyImages:
    """Images uint8 [N, H, W, C] that are decoded whenever they are read, ``images[indices]``.

    They may be pickled, copied, and read by several threads, and by processes that were forked. ``rows`` tells which
    images of the index in the folder they are, int64 [N].
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, folder: Path, rows: NDArray[np.int64]) -> None:
        facts = json.loads((folder / FACTS).read_text(encoding="ascii"))
        self.rows = rows
        self.shape: tuple[int, ...] = (len(rows), *facts["image_shape"])
        self._folder, self._in_files, self._decoding = folder, facts["in_files"], facts["decoding"]
        self._offsets = np.load(folder / OFFSETS, mmap_mode="r")
        self._records = (folder / RECORDS).open("rb", buffering=0)  # stays readable when the folder is deleted
        if os.fstat(self._records.fileno()).st_size != self._offsets[-1]:
            raise ValueError(f"the index in '{folder}' is damaged")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Any) -> NDArray[np.uint8]:
        """Decode the images that are chosen as along the first axis of an array.

        Raises:
            ValueError: an image cannot be read any more; says where it is.
        """
        rows = self.rows[which]
        images = np.empty((rows.size, *self.shape[1:]), np.uint8)
        for place, row in enumerate(rows.ravel().tolist()):
            images[place] = self._decode(row)  # a grey image among colour ones gets equal channels
        return images.reshape(*rows.shape, *self.shape[1:])

    def __del__(self) -> None:
        if hasattr(self, "_records"):
            self._records.close()

    def __reduce__(self) -> Any:
        return LazyImages, (self._folder, self.rows)

    def part(self, which: Any) -> "LazyImages":
        """Take some of the images, still encoded: those in a slice, array of numbers, or array of truth values."""
        return LazyImages(self._folder, self.rows[which])

    def _decode(self, row: int) -> NDArray[np.uint8]:
        record = self._record(row)
        where = f"row {row} of the index in '{self._folder}'"
        try:
            if self._in_files:
                where = os.fsdecode(record.split(b" ", 1)[1])
                record = _read_file(record)
            image, _ = decode(record, *self._decoding)
            if image.shape[:2] != self.shape[1:3]:
                raise ValueError(f"it is of another size, {image.shape[0]}×{image.shape[1]}")
        except Exception as error:  # Pillow raises many kinds for a damaged file
            raise ValueError(
                f"cannot read the image at {where} ({error}), which was there when the stream was made; restore it and "
                f"go on from the last checkpoint, or begin again"
            ) from error
        return image

    def _record(self, row: int) -> bytes:
        start, stop = self._offsets[row : row + 2].tolist()
        if hasattr(os, "pread"):  # independent of where other threads and forked processes read
            return os.pread(self._records.fileno(), stop - start, start)
        with (self._folder / RECORDS).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)


class IndexWriter:
    """Writes an index, image by image, into a folder that is there."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._offsets = folder, array("q", [0])
        self._file = (folder / RECORDS).open("wb")

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, record: bytes) -> None:
        """Add an encoded image, or what ``file_record`` returns for one."""
        self._file.write(record)
        self._offsets.append(self._offsets[-1] + len(record))

    def finish(self, image_shape: tuple[int, int, int], in_files: bool, decoding: Decoding) -> LazyImages:
        """Write the rest of the index, and return all the images, [height, width, channels] each."""
        self._file.flush()
        os.fsync(self._file.fileno())
        np.save(self._folder / OFFSETS, np.array(self._offsets, dtype=np.int64))
        facts = {"image_shape": image_shape, "in_files": in_files, "decoding": decoding}
        (self._folder / FACTS).write_text(json.dumps(facts), encoding="ascii")
        return LazyImages(self._folder, np.arange(len(self._offsets) - 1))


def file_record(path: str, content: bytes) -> bytes:
    """Describe an image that is a file, for an index: a hash of its content, and where it is."""
    return hashlib.sha256(content).hexdigest().encode() + b" " + os.fsencode(os.path.realpath(path))


def _read_file(record: bytes) -> bytes:
    digest, path = record.split(b" ", 1)
    with open_regular(Path(os.fsdecode(path))) as file:
        content = file.read()
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("the file has changed")
    return content


def decode(content: bytes, as_stored: bool = False, size: int = 0) -> tuple[NDArray[np.uint8], set[str]]:
    """Decode an image.

    Args:
        content: of the file, in one of ``FORMATS``; Pillow starts programs for some of the others.
        as_stored: whether to leave the image as it is stored, whatever orientation its EXIF data says. Pillow itself
            turns TIFF images.
        size: height and width to resize the upright image to, by Pillow's bicubic filter; 0 leaves its size. Pillow
            adds up whole numbers, and versions 10 to 13 give the same pixels; a later one may round differently.

    Returns:
        uint8 [H, W, 1] for shades of grey, [H, W, 3] for colours, and what was done to the image: "turned upright",
        "resized to …".

    Raises:
        ValueError: its pixels are deeper than 8 bits.
        Exception: Pillow cannot read it; of many kinds.

    Example:
        >>> decode(b"P5 3 2 255 " + bytes(range(6)))[0][..., 0].tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    from PIL import Image, UnidentifiedImageError

    if content.startswith(LFS_POINTER):
        raise ValueError(FETCH_LFS)
    try:
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from error
    changes = set[str]()
    with opened as image:
        image.load()
        orientation: Any = None
        if not as_stored:
            # Pillow raises many kinds for damaged EXIF data, without which the image is whole
            with suppress(Exception):
                orientation = image.getexif().get(ORIENTATION)
        upright: Image.Image = image
        if isinstance(orientation, int) and 2 <= orientation <= 8:
            upright = image.transpose(Image.Transpose[TURNS[orientation - 2]])
            changes.add("turned upright")
        if size and upright.size != (size, size):
            changes.add(f"resized to {size}")
        return _pixels(upright, size), changes


def _pixels(image: "Image", size: int) -> NDArray[np.uint8]:
    if image.mode.startswith(("I", "F")):  # Pillow would turn all but the darkest pixels white
        raise ValueError(f"its pixels, of mode {image.mode}, are deeper than 8 bits; convert it to 8 bits")
    mode = "L" if image.mode in ("1", "L") else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    pixels = np.asarray(_resized(image, size) if size else image)
    return pixels[..., None] if mode == "L" else pixels


def _resized(image: "Image", size: int) -> "Image":
    """Scale the shorter side to ``size``, and cut the middle out of the longer one.

    Both are one step, so that a very long image takes little memory. The cut is at a whole pixel of the scaled image.
    Portraits are laid on their side before, because Pillow 13 rounds them differently from earlier versions.
    """
    from PIL.Image import Resampling, Transpose

    if image.height > image.width:
        return _resized(image.transpose(Transpose.TRANSPOSE), size).transpose(Transpose.TRANSPOSE)
    height = image.height
    left = (image.width * size // height - size) // 2 * height / size
    return image.resize((size, size), Resampling.BICUBIC, (left, 0, left + height, height))


class ReadAhead:
    """Reads lazy images in the order of a stream, with threads that decode what comes next.

    Threads run ahead while reading goes on where it left off. After a jump to a single image, as random access and a
    first look at a stream make them, they wait until it does. Images decoded ahead take up at most a quarter of
    ``memory_limit`` (bytes), 32 MB, or 2,048 images, whichever is least, but at least one image. It is read by one
    thread at a time. ``order`` says which image is presented at each place of the stream, int [places].
    """

    def __init__(self, images: LazyImages, order: NDArray[np.integer], memory_limit: int) -> None:
        self._images, self._order, self._memory_limit = images, order, memory_limit
        n_ahead = min(MAX_AHEAD, min(MAX_AHEAD_BYTES, memory_limit // 4) // math.prod(images.shape[1:]))
        self._chunk = min(max(n_ahead // 4, 1), MAX_CHUNK)  # images
        self._n_chunks_ahead = max((n_ahead - self._chunk + 1) // self._chunk, 1)  # with what is left of a chunk
        self._chunks: dict[int, Future[NDArray[np.uint8]]] = {}
        self._last, self._process = range(-1, -1), os.getpid()

    def __reduce__(self) -> Any:
        return ReadAhead, (self._images, self._order, self._memory_limit)

    def read(self, places: range) -> NDArray[np.uint8]:
        """Read the images at some places, uint8 [n, H, W, C], the caller's own.

        Raises:
            ValueError: one of them cannot be read any more; says where it is.
        """
        goes_on = self._last.start <= places.start <= self._last.stop
        self._last = places
        waiting, self._chunks = self._chunks, {}  # whatever happens below, nothing stale is used
        if os.getpid() != self._process:  # threads do not survive a fork
            waiting, self._process = {}, os.getpid()
        if places.step != 1 or not places or (len(places) == 1 and not goes_on):
            for future in waiting.values():
                future.cancel()
            return self._images[self._order[list(places)]]
        first, end = places.start // self._chunk, -(-places.stop // self._chunk)
        wanted = range(first, min(end + self._n_chunks_ahead, -(-len(self._order) // self._chunk)))
        for number in waiting.keys() - set(wanted):
            waiting.pop(number).cancel()
        chunks = {number: waiting.get(number) or self._begin(number) for number in wanted}
        images = np.concatenate([chunks[number].result() for number in range(first, end)])
        self._chunks = {number: chunk for number, chunk in chunks.items() if number >= places.stop // self._chunk}
        return images[places.start - first * self._chunk :][: len(places)]

    def _begin(self, number: int) -> "Future[NDArray[np.uint8]]":
        future: Future[NDArray[np.uint8]] = Future()
        order = self._order[number * self._chunk : (number + 1) * self._chunk]
        _queue(os.getpid()).put((future, self._images, order))
        return future


@cache
def _queue(process: int) -> SimpleQueue[Any]:
    """Start the threads of a process, which end with it, and return the queue of what they have to do."""
    queue: SimpleQueue[Any] = SimpleQueue()
    for _ in range(min(MAX_THREADS, os.cpu_count() or 1)):
        Thread(target=_work, args=(queue,), name="image decoder", daemon=True).start()
    return queue


def _work(queue: SimpleQueue[Any]) -> None:
    while True:
        future, images, which = queue.get()
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(images[which])
            except Exception as error:
                future.set_exception(error)
        del future, images, which  # or they would stay in memory until there is more to do
