"""Small images whose pixels tell which sample they are, and files that hold them.

Pixel p of image i has the value i · (number of pixels) + p, in integer arithmetic that is the same everywhere. So a
test can read off an image which sample it is and where each of its pixels came from.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from continual_metaopt.streams.samples import Samples

HEIGHT, WIDTH = 2, 2
N_PIXELS = HEIGHT * WIDTH
N_CLASSES = 12


def coded_images(ids: Iterable[int], height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Images [N, height, width] that carry their number."""
    values = np.array(list(ids))[:, None, None] * (height * width) + np.arange(height * width).reshape(height, width)
    assert values.max() < 256
    return values.astype(np.uint8)


def coded_arrays(
    n_classes: int = N_CLASSES, per_class: int = 4, test_per_class: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """A source (x, y, x_test, y_test) of images 2 × 2; image i has the class i modulo the number of classes."""
    n, n_test = n_classes * per_class, n_classes * test_per_class
    ids = np.arange(n + n_test)
    x, y = coded_images(ids), ids % n_classes
    return x[:n], y[:n], x[n:], y[n:]


def stored_bytes(image: Any) -> NDArray[np.int64]:
    """The bytes from which a stream's image was scaled, or several images."""
    return np.rint((np.asarray(image).astype(float) * 0.5 + 0.5) * 255).astype(np.int64)


def numbers_and_labels(samples: Samples) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of the image and label of all samples of an experience of a stream of arrays, on coded images."""
    x, y = samples.batch(slice(None))
    return stored_bytes(x).min(axis=(1, 2, 3)) // N_PIXELS, y


def encode(image: NDArray[Any], kind: str = "png", **options: Any) -> bytes:
    """An image as the content of a file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def write_parquet(
    file: Path,
    images: Sequence[bytes | None],
    labels: Any,
    image_column: str = "image",
    label_column: str = "label",
    **more: Any,
) -> Path:
    """A shard in Hugging Face's image layout."""
    file.parent.mkdir(parents=True, exist_ok=True)
    layout = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": image, "path": None} for image in images], layout)
    pq.write_table(pa.table({image_column: column, label_column: labels, **more}), file)
    return file


def write_folder(path: Path, images: Sequence[NDArray[Any]], classes: Sequence[str]) -> Path:
    """A folder ``path/CLASS/NUMBER.png``."""
    for number, (image, name) in enumerate(zip(images, classes, strict=True)):
        (path / name).mkdir(parents=True, exist_ok=True)
        (path / name / f"{number:03d}.png").write_bytes(encode(image))
    return path
