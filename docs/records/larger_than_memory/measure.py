"""A source larger than memory beside the same source in memory: samples per second, and memory of the process.

    python docs/records/larger_than_memory/measure.py

The images are made for the purpose: smooth colours with some noise, as PNG files in a folder and as JPEG in parquet
shards. Speed is that of online learning at batch size 1 with MetaOptimize on the compiled engine (one thread), learning
from both in turns, each of which begins with a jump to the start; ratios are medians over the turns. On a machine whose
cores are all taken, the threads that decode take their time from the learner. So there is a second ratio, of times
without those in which the learner was ready to run and waited for a core: what a learner and threads with cores of
their own would come to at worst. "Blocked" is how long the learner waited for images and for Python's lock, as a share
of the time in which it computed. Memory is that of processes of their own which read the whole stream in batches of
100: the largest growth of their anonymous memory, which cannot be given back under pressure, as pages of files can.
Linux only.
"""

import io
import multiprocessing
import os
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from tabulate import tabulate

MEGABYTE = 10**6
IMAGES, SIZE, LIMIT = 24_000, 32, 16 * MEGABYTE  # their number, height and width, and memory_limit
SAMPLES, REPEATS = 20_000, 5  # of a turn, and turns
N_CLASSES, BATCH = 10, 100


def encoded_images(n: int, size: int, kind: str) -> list[bytes]:
    """Encoded colour images of a size; a few hundred different ones."""
    from PIL import Image

    random = np.random.RandomState(0)
    contents = []
    for _ in range(min(n, 500)):
        coarse = Image.fromarray(random.randint(0, 256, (4, 4, 3)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
        noisy = np.clip(smooth + random.randint(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, kind)
        contents.append(file.getvalue())
    return [contents[i % len(contents)] for i in range(n)]


def write_sources(root: Path, n: int, size: int) -> list[str]:
    """Write the images as an image folder and as parquet shards; returns both sources."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for label in range(N_CLASSES):
        (root / "folder" / str(label)).mkdir(parents=True)
    for i, content in enumerate(encoded_images(n, size, "png")):
        (root / "folder" / str(i % N_CLASSES) / f"{i:07d}.png").write_bytes(content)
    (root / "parquet").mkdir()
    images = encoded_images(n, size, "jpeg")
    layout = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for shard in range(4):
        rows = range(shard * n // 4, (shard + 1) * n // 4)
        column = pa.array([{"bytes": images[i], "path": None} for i in rows], layout)
        table = pa.table({"image": column, "label": [i % N_CLASSES for i in rows]})
        pq.write_table(table, root / "parquet" / f"train-{shard:05d}-of-00004.parquet", row_group_size=1000)
    return [f"folder:{root / 'folder'}", f"parquet:{root / 'parquet'}"]


def anonymous_memory() -> int:
    """Bytes of this process that are not pages of files."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("this kernel does not tell the anonymous memory of a process")


class Growth:
    """Watches how far the memory of this process grows; ``with Growth() as growth: …; growth.bytes``."""

    def __enter__(self) -> "Growth":
        self._start, self.bytes, self._done = anonymous_memory(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.bytes = max(self.bytes, anonymous_memory() - self._start)


def read_stream(source: str, connection: Connection) -> None:
    """Load a source and read a stream over it; sends megabytes of growth while loading and reading."""
    import pyarrow.parquet  # noqa: F401

    from continual_metaopt.streams import plan_stream
    from continual_metaopt.streams.lazy_images import decode

    for kind in ("png", "jpeg"):  # what libraries take up is no growth
        decode(*encoded_images(1, 8, kind))
    plan_stream("class_split", source=(np.zeros((4, 2, 2), np.uint8), [0, 1, 0, 1]), classes_per_experience=2)
    growths = []
    with Growth() as growth:
        stream = plan_stream("class_split", source=source, classes_per_experience=N_CLASSES, memory_limit=LIMIT)
    growths.append(growth.bytes / MEGABYTE)
    with Growth() as growth:
        for samples in stream.train:
            for start in range(0, len(samples), BATCH):
                samples.batch(slice(start, start + BATCH))
    growths.append(growth.bytes / MEGABYTE)
    connection.send(growths)


def measure_memory(source: str) -> list[float]:
    """What ``read_stream`` sends from a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=read_stream, args=(source, theirs))
    process.start()
    growths: list[float] = ours.recv()
    process.join()
    return growths


def clocks() -> NDArray[np.float64]:
    """Seconds that have passed; that this thread has computed, and been ready but without a core; of all threads."""
    schedule = Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()
    return np.array([time.perf_counter(), int(schedule[0]) / 1e9, int(schedule[1]) / 1e9, time.process_time()])


def measure_speed(source: str) -> dict[str, Any]:
    """Speed of learning from a source in memory, and from the same larger than memory."""
    from continual_metaopt import MetaOptimize, OnlineLearner, PaperCNN, blocks
    from continual_metaopt.runs.process_settings import set_up_process
    from continual_metaopt.streams import make_stream

    set_up_process()
    learners = []
    for limit in (2**62, LIMIT):
        stream = make_stream(
            "class_split",
            source=source,
            classes_per_experience=N_CLASSES,
            samples_per_experience=SAMPLES,
            memory_limit=limit,
        )
        (experience,) = stream.train_stream
        model = PaperCNN(input_shape=stream.info.for_learner.input_shape)
        learn = OnlineLearner(model=model, optimizer=MetaOptimize(blocks(model), 1e-4), engine="compiled").train
        learn(experience)  # what happens in the first call only, such as compilation, is not measured
        learners.append((learn, experience))
    turns: list[list[Any]] = [[], []]
    for turn in track(range(REPEATS), description="measuring", console=Console(stderr=True)):
        for which in (0, 1) if turn % 2 else (1, 0):
            learn, experience = learners[which]
            before = clocks()
            learn(experience)
            turns[which].append((clocks() - before) / len(experience.dataset))
    (wall, computing, ready, both), (decoded_wall, decoded_computing, decoded_ready, _) = (
        np.array(part).T for part in reversed(turns)
    )
    ratio, own_cores = decoded_wall / wall, (decoded_wall - decoded_ready) / (wall - ready)
    return {
        "in memory, samples/s": f"{1 / np.median(decoded_wall):.0f}",
        "× larger than memory": f"{np.median(ratio):.2f}",
        "range": f"{ratio.min():.2f}–{ratio.max():.2f}",
        "× with own cores": f"{np.median(own_cores):.2f}",
        "its range": f"{own_cores.min():.2f}–{own_cores.max():.2f}",
        "blocked": f"{np.median((wall - computing - ready) / computing):.1%}",
        "learner µs, in memory": f"{np.median(decoded_computing) * 1e6:.0f}",
        "learner µs": f"{np.median(computing) * 1e6:.0f}",
        "decoding µs": f"{np.median(both - computing) * 1e6:.0f}",
    }


def main() -> None:
    """Measure and print the table."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONTINUAL_METAOPT_CACHE"] = f"{folder}/cache"
        for source in write_sources(Path(folder), IMAGES, SIZE):
            indexing, reading = measure_memory(source)
            opening, again = measure_memory(source)
            rows.append(
                {
                    "source": source.partition(":")[0],
                    "decoded MB": f"{IMAGES * SIZE**2 * 3 / MEGABYTE:.0f}",
                    "memory_limit MB": LIMIT // MEGABYTE,
                    "indexing +MB": f"{indexing:.0f}",
                    "opening +MB": f"{opening:.0f}",
                    "reading +MB": f"{max(reading, again):.0f}",
                }
                | measure_speed(source)
            )
    print(tabulate(rows, headers="keys"))


if __name__ == "__main__":
    main()
