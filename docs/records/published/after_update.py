"""Measure accuracy on each training sample right after the update it was learned from, beside that before it.

The learners are those of ``choices_streams.yaml``, on ``class_split``. Writes a CSV file. From this folder:

    python after_update.py --source parquet:../../../data/cifar100 --out after_update.csv
"""

import argparse
import csv
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from continual_metaopt.engines.observations import Observations
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.preparing import prepare
from streams import plan_stream
from streams.samples import Samples

COLUMNS = ("label", "seed", "n_samples", "n_correct_before", "n_correct_after")


@dataclass
class One:
    """A single one of some samples."""

    samples: Samples
    place: int

    def __len__(self) -> int:
        return 1

    def batch(self, steps: slice) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """The sample; see ``streams.samples.Samples``."""
        return self.samples.batch(slice(self.place, self.place + 1))


def measure(config: RunConfig) -> tuple[str, int, int, int, int]:
    """Learn from a stream, and predict each sample again after learning from it.

    Args:
        config: a run that compiled code can do.

    Returns:
        The values of ``COLUMNS``.
    """
    config = config.resolved()
    with TemporaryDirectory() as folder:
        prepared = prepare(config, Path(folder))
    if prepared is None:
        raise ValueError(f"{config.label} cannot be compiled")
    step = before = after = 0
    for experience, samples in enumerate(
        plan_stream(config.stream.name, **config.stream.options, seed=config.seed).train
    ):
        for place in range(len(samples)):
            seen = Observations(experience, step)
            prepared.learner.learn(samples, place, seen, config.record_every, at_most=1)
            before += bool(seen.correct[0])
            after += round(prepared.learner.accuracy(One(samples, place)))
            step += 1
    return config.label, config.seed, step, before, after


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="cifar100", help="of the images, such as parquet:FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, help="use only this many samples of each experience")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    arguments = parser.parse_args()
    stream = Component(name="class_split", source=arguments.source, samples_per_experience=arguments.samples)
    learners = yaml.safe_load(Path(__file__).with_name("choices_streams.yaml").read_text(encoding="utf-8"))["learners"]
    configs = [
        RunConfig(stream=stream, network=Component(name="paper_cnn"), learner=learner, seed=seed, label=label)
        for label, learner in ((entry.pop("label"), Component(**entry)) for entry in learners)
        for seed in arguments.seeds
    ]
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        rows = list(pool.map(measure, configs))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
