"""Arrays in a file of NumPy's format npz: the user's own samples and targets, which runs read as ``npz:FILE``."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.streams.source_files import open_regular

NAMES = ("x", "y", "x_test", "y_test")
PREFIX = "npz:"


def save_arrays(folder: str | Path, *arrays: Any) -> str:
    """Write samples and targets into a file whose name tells their content; returns the source that names it.

    Args:
        folder: where the file goes, made if it does not exist.
        *arrays: x and y, or x, y, x_test and y_test.

    Raises:
        ValueError: there are not two or four arrays, or one does not hold numbers.

    Example:
        >>> import tempfile
        >>> source = save_arrays(tempfile.mkdtemp(), [[0.5], [1.5]], [0, 1])
        >>> source[:4], read_arrays(source)[0].tolist()
        ('npz:', [[0.5], [1.5]])
    """
    if len(arrays) not in (2, 4):
        raise ValueError(f"a source of arrays is (x, y) or (x, y, x_test, y_test), not {len(arrays)} things")
    numbers = [np.ascontiguousarray(array) for array in arrays]
    digest = hashlib.sha256()
    for name, array in zip(NAMES, numbers, strict=False):
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} must be an array of numbers, not of {array.dtype}")
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    path = Path(folder) / f"arrays-{digest.hexdigest()[:12]}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            named: dict[str, Any] = dict(zip(NAMES, numbers, strict=False))
            np.savez(file, **named)
        unfinished.replace(path)
    return f"{PREFIX}{path}"


def read_arrays(source: str) -> tuple[NDArray[Any], ...]:
    """Read x and y, and x_test and y_test if they are there, from the file that ``npz:FILE`` names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an npz file with these arrays.
    """
    path = Path(source.removeprefix(PREFIX)).expanduser()
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as content:
            names = NAMES if "x_test" in content else NAMES[:2]
            return tuple(content[name] for name in names)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever NumPy and zipfile say of a damaged file
        raise ValueError(
            f"cannot read '{path}' ({str(error).strip()}); it must be an npz file with the arrays x and y, and x_test "
            "and y_test if samples are held out, as numpy.savez writes it"
        ) from error
