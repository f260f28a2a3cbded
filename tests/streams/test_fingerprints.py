"""A seed means the same stream on every platform and in every version: recorded fingerprints of every stream.

If a test here fails, results that were recorded earlier cannot be repeated any more. Whoever means a stream to become
another one raises the version in its definition and records anew: ``python -m tests.streams.test_fingerprints NAME
OPTIONS`` prints a line of ``fingerprints.txt``, with OPTIONS as JSON.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from continual_metaopt.streams import STREAMS, plan_stream
from continual_metaopt.streams.plan import random_state
from continual_metaopt.streams.stream import Stream
from tests.streams.synthetic import coded_arrays, coded_images

X, Y, X_TEST, Y_TEST = coded_arrays()  # 12 classes, 48 training and 12 test images
WIDE, PHOTOS = coded_images(range(20), 3, 4), np.random.RandomState(1).randint(256, size=(20, 6, 5, 3)).astype(np.uint8)
FOUR = np.arange(20) % 4


def colours(x: Any) -> Any:
    return np.stack([x, 255 - x, x ^ 1], axis=-1)


SOURCES: dict[str, Any] = {
    "tiny": (X, Y, X_TEST, Y_TEST),
    "tiny, no test images": (X, Y),
    "tiny colours": (colours(X), np.repeat(np.arange(6), [4, 6, 8, 8, 10, 12])),  # classes of different sizes
    "three classes": coded_arrays(n_classes=3, per_class=5, test_per_class=2),
    "3 × 4": (WIDE[:16], FOUR[:16], WIDE[16:], FOUR[16:]),
    "3 × 4 colours": (colours(WIDE)[:16], FOUR[:16], colours(WIDE)[16:], FOUR[16:]),
    "6 × 5 colours": (PHOTOS[:16], FOUR[:16], PHOTOS[16:], np.arange(4)),
    "digits": "digits",
    "vectors": (np.arange(60.0).reshape(20, 3) / 8, FOUR, np.ones((2, 3)), FOUR[:2]),
    "series": (np.arange(60.0).reshape(20, 3) / 8, np.arange(20.0) / 4),
}
N_PRESENTED = 4  # samples of each experience whose values are recorded
FILE = Path(__file__).with_name("fingerprints.txt")

# name, options, fingerprint, hash of the first values that are presented
Entry = tuple[str, dict[str, Any], str, str]
LINES = [line.split("  ") for line in FILE.read_text(encoding="utf-8").splitlines()]
RECORDED: list[Entry] = [(name, json.loads(options), one, other) for name, options, one, other in LINES]
NAMES = STREAMS.own


def planned(name: str, options: dict[str, Any]) -> Stream:
    known = {"source": SOURCES[options["source"]]} if "source" in options else {}
    return plan_stream(name, **{**options, **known})


def presented(stream: Stream) -> str:
    """Hash of the first inputs and targets of every experience, learned from and held out."""
    digest = hashlib.sha256()
    for samples in (*stream.train, *stream.test):
        inputs, targets = samples.batch(slice(0, min(N_PRESENTED, len(samples))))
        digest.update(f"{inputs.shape} {targets.shape}".encode())
        digest.update(inputs.astype("<f4").tobytes())
        digest.update(targets.astype("<i8" if targets.dtype.kind == "i" else "<f4").tobytes())
    return digest.hexdigest()[:16]


def entry(name: str, options: dict[str, Any]) -> Entry:
    stream = planned(name, options)
    return name, options, stream.info.fingerprint, presented(stream)


@pytest.mark.parametrize("name", NAMES)
def test_every_stream_is_recorded(name: str) -> None:
    of_it = [row for row in RECORDED if row[0] == name]
    seeds = {options.get("seed", 0) for _, options, *_ in of_it}
    assert len(of_it) >= 2 <= len(seeds), (
        f"'{name}' needs lines in {FILE}, for several options, seeds and sources. Print one with: "
        f"""python -m tests.streams.test_fingerprints {name} '{{"source": "tiny", "seed": 1}}'"""
    )
    assert len({row[2] for row in of_it}) == len(of_it), "other options give other fingerprints"


def test_nothing_is_recorded_of_streams_that_are_gone() -> None:
    assert {name for name, *_ in RECORDED} <= set(NAMES)


@pytest.mark.parametrize("recorded", [pytest.param(row, id=f"{row[0]} {row[1]}") for row in RECORDED])
def test_a_seed_goes_on_meaning_the_same_stream(recorded: Entry) -> None:
    assert entry(*recorded[:2]) == recorded


def test_the_generator_gives_the_same_numbers() -> None:
    """On the same platform a failure here means that NumPy has changed; elsewhere, that it differs there."""
    assert random_state(0, 1, 2).permutation(10).tolist() == [6, 1, 0, 2, 4, 8, 5, 3, 9, 7]
    assert random_state(2**32 - 1, 1).permutation(np.arange(3, 11)).tolist() == [9, 8, 7, 5, 4, 6, 10, 3]
    assert random_state(0, 1, 2).randint(1000, size=6, dtype=np.int64).tolist() == [519, 759, 443, 325, 307, 327]
    assert [draw.hex() for draw in random_state(0, 1, 2).random_sample(3)] == [
        "0x1.ae3bd08a7642cp-3",
        "0x1.423666867c18ap-2",
        "0x1.ab271238aaaa8p-4",
    ]
    assert random_state(0, 1, 2).standard_normal(3).astype(np.float32).tolist() == [
        -0.6584917306900024,
        -1.0300737619400024,
        -0.03867914155125618,
    ]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_the_size_of_integers_decides_nothing(dtype: Any) -> None:
    """It differs between platforms where it is not given."""
    wide = random_state(0, 1, 2)
    other = random_state(0, 1, 2)
    assert other.permutation(np.arange(50, dtype=dtype)).tolist() == wide.permutation(np.arange(50)).tolist()
    assert other.randint(7, size=50, dtype=dtype).tolist() == wide.randint(7, size=50, dtype=np.int64).tolist()


if __name__ == "__main__":
    name, options, *hashes = entry(sys.argv[1], json.loads(sys.argv[2]))
    print(name, json.dumps(options, ensure_ascii=False), *hashes, sep="  ")
