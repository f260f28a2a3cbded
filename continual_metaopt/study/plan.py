"""What a study will take: its runs, their samples, and about how many hours."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from statistics import harmonic_mean, median
from typing import Any

from rich.filesize import decimal

from continual_metaopt.analysis.records import read_config, read_status
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.study.expand import Study
from continual_metaopt.study.lengths import check_selection_length, stream_sizes
from continual_metaopt.study.overview import bytes_below, run_directories
from continual_metaopt.study.progress import duration

FASTEST = 1e8  # samples per second that a run may say it had
ASSUMED_SPEED = 1000.0  # samples per second of one run, where neither an earlier run nor a measurement tells
ALL_TUNED = "all that are tuned"  # basis of the speed of those that are the best among them
LEVEL = 0.05  # of tests
EARLIER_RUNS = 1000  # that are looked at for their speed

# Size of records, measured on those kept in this repository: bytes per run, per sample, and per step at which about
# three step sizes are recorded with their meta gradients
RUN_BYTES, SAMPLE_BYTES, RECORDED_STEP_BYTES = 7300.0, 3.6, 40.0
CHECKPOINT_BYTES = 20.0  # per parameter: weights, two moments, two traces, as float32

# given runs by the labels of their learners, tells samples per second of those that it knows
Speeds = Callable[[Mapping[str, RunConfig]], Mapping[str, float]]
Earlier = Sequence[tuple[dict[str, Any], float]]  # descriptions of the learners of earlier runs, and their speeds


@dataclass(frozen=True)
class LearnerPlan:
    """What one learner of a study will take.

    Attributes:
        label: of the learner.
        selection_runs, selection_samples: runs to choose its setting, and their samples, all together.
        reported_runs, reported_samples: the same of the reported runs.
        samples_per_second: how fast one run of it is expected to be.
        basis: where that is from.
    """

    label: str
    selection_runs: int
    selection_samples: int
    reported_runs: int
    reported_samples: int
    samples_per_second: float
    basis: str

    @property
    def samples(self) -> int:
        """Samples of all its runs together."""
        return self.selection_samples + self.reported_samples

    @property
    def hours(self) -> float:
        """Of computing, one run after the other."""
        return self.samples / self.samples_per_second / 3600

    def bytes(self, record_every: int) -> float:
        """About how large the records of all its runs are together."""
        n_runs = self.selection_runs + self.reported_runs
        return n_runs * RUN_BYTES + self.samples * (SAMPLE_BYTES + RECORDED_STEP_BYTES / record_every)


@dataclass(frozen=True)
class StudyPlan:
    """What a study will take if none of its runs has been done.

    Attributes:
        name: of the study.
        learners: what each takes, and in a last row the tuned settings where only those of the best are reported.
        workers: runs at a time.
        record_every: distance in steps between recorded step sizes.
        n_parameters: of the network.
        n_seeds: reported seeds of each learner; 0 if that is not known.
    """

    name: str
    learners: list[LearnerPlan]
    workers: int
    record_every: int
    n_parameters: int = 0
    n_seeds: int = 0

    @property
    def runs(self) -> int:
        """Number of runs."""
        return sum(plan.selection_runs + plan.reported_runs for plan in self.learners)

    @property
    def samples(self) -> int:
        """Samples of all runs together."""
        return sum(plan.samples for plan in self.learners)

    @property
    def hours(self) -> float:
        """Hours until the study is done, with all workers busy."""
        return sum(plan.hours for plan in self.learners) / max(1, min(self.workers, self.runs))

    @property
    def bytes(self) -> float:
        """Disk space: of all records, and of the checkpoints of the runs under way."""
        checkpoints = min(self.workers, self.runs) * self.n_parameters * CHECKPOINT_BYTES
        return sum(plan.bytes(self.record_every) for plan in self.learners) + checkpoints

    def summary(self) -> str:
        """Say it in one sentence."""
        bases = ", ".join(dict.fromkeys(plan.basis for plan in self.learners if plan.basis != ALL_TUNED))
        return (
            f"{self.name}: {self.runs:,} run{'s' * (self.runs != 1)} with {self.samples:,} samples, "
            f"about {_duration(self.hours)} with "
            f"{self.workers} run{'s' * (self.workers != 1)} at a time (speeds: {bases}), and about "
            f"{decimal(round(self.bytes))} on disk; runs that have ended are not repeated."
        )

    def table(self) -> str:
        """Show a row for each learner, and the summary below."""
        from tabulate import tabulate

        rows = [
            (
                plan.label,
                _runs(plan.selection_runs, plan.selection_samples),
                _runs(plan.reported_runs, plan.reported_samples),
                f"{plan.samples_per_second:,.0f}",
                plan.basis,
                _duration(plan.hours),
                decimal(round(plan.bytes(self.record_every))),
            )
            for plan in self.learners
        ]
        headers = ["learner", "selection (runs × samples)", "reported", "samples/s", "from", "one at a time", "on disk"]
        align = ["left", "right", "right", "right", "left", "right", "right"]
        texts = [tabulate(rows, headers, colalign=align, disable_numparse=True), self.summary()]
        return "\n\n".join([*texts, what_seeds_show(self.n_seeds)] if self.n_seeds else texts)


def what_seeds_show(n_seeds: int) -> str:
    """Say what differences so many seeds can tell from none, and how many a difference of one point needs.

    Example:
        >>> print(what_seeds_show(5).splitlines()[0])
        5 seeds: an exact paired test cannot reach p < 0.05; that takes 6 seeds.
    """
    from continual_metaopt.analysis.comparisons import seeds_needed, smallest_p

    least = next(n for n in count(1) if smallest_p(n) < LEVEL)
    can = "can reach" if n_seeds >= least else "cannot reach"
    more = "" if n_seeds >= least else f"; that takes {least} seeds"
    needed = ", ".join(f"{seeds_needed(1 / spread)} if it is {spread:g}" for spread in (0.5, 1.0, 2.0))
    return (
        f"{n_seeds} seed{'s' * (n_seeds != 1)}: an exact paired test {can} p < {LEVEL:g}{more}.\n"
        "Seeds for a paired t-test to find a difference of one point with 80 % power, by the standard deviation of "
        f"that difference between seeds: {needed}."
    )


def plan_study(
    study: Study, folders: Sequence[Path], workers: int, n_parameters: int = 0, speeds: Speeds | None = None
) -> StudyPlan:
    """Say what a study will take. None of its runs is done; decoded images of its source are written, and speeds kept.

    Args:
        study: the study.
        folders: where to look for earlier runs of this machine, for their speed.
        workers: runs at a time.
        n_parameters: of the network, as ``check_study`` tells; for the space that checkpoints take.
        speeds: tells those of learners of which there is no earlier run, if anything can.

    Raises:
        ConfigError: selection runs have another length than the study says.
        FileNotFoundError: the stream's source is not there.
    """
    check_selection_length(study)
    lengths = {purpose: stream_sizes(run).n_samples for purpose, run in study.runs.items()}
    network = study.runs["report"].network.model_dump(mode="json")
    done = islice(_earlier_runs(folders), EARLIER_RUNS)
    earlier = [(record["learner"], speed) for record, speed in done if record["network"] == network]
    known = {kind_of(learner) for learner, _ in earlier}
    made = {learner.label: learner.known[0].model_dump(mode="json") for learner in study.learners}
    runs = {
        learner.label: learner.run(study.config.seeds[0], learner.known[0])
        for learner in study.learners
        if kind_of(made[learner.label]) not in known and not learner.entry.replays  # there is nothing to replay yet
    }
    measured = speeds(runs) if speeds else {}
    rows = [
        LearnerPlan(
            learner.label,
            learner.n_selection_runs,
            learner.n_selection_runs * lengths.get("selection", 0),
            learner.n_reported_runs,
            learner.n_reported_runs * lengths["report"],
            *_speed(made[learner.label], earlier, measured.get(learner.label)),
        )
        for learner in study.learners
    ]
    if (
        study.config.n_best
    ):  # a row for the chosen settings of the best, whoever they will be, at the mean pace of all tuned
        tuned = [row for row, learner in zip(rows, study.learners, strict=True) if learner.search]
        n_runs = study.config.n_best * len(study.config.seeds)
        label = f"tuned, the best {study.config.n_best} of {len(tuned)}"
        speed = harmonic_mean([row.samples_per_second for row in tuned])
        rows.append(LearnerPlan(label, 0, 0, n_runs, n_runs * lengths["report"], speed, ALL_TUNED))
    seeds = len(study.config.seeds)
    return StudyPlan(study.config.name, rows, workers, study.config.record_every, n_parameters, seeds)


def require_disk_space(n_bytes: float, folder: Path) -> None:
    """Check that what is still to be recorded of ``n_bytes`` in all fits on the disk of a study's folder.

    Raises:
        ValueError: it does not; the message says what is needed.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free, needed = shutil.disk_usage(there).free, round(n_bytes - bytes_below(folder))
    if needed > free:
        raise ValueError(
            f"the study needs about {decimal(needed)} more in '{folder}', where {decimal(free)} are free; choose a "
            "folder on another disk with --out, or record less: a larger record_every, fewer seeds or learners"
        )


def _speed(learner: dict[str, Any], earlier: Earlier, measured: float | None) -> tuple[float, str]:
    """Expected samples per second of a learner, and from where."""
    same = [speed for known, speed in earlier if kind_of(known) == kind_of(learner)]
    alike = [speed for known, speed in earlier if known.get("name") == learner["name"]]
    here, others = [measured] if measured else [], [speed for _, speed in earlier]
    speeds = {"earlier runs": same, "measured here": here, "earlier runs alike": alike, "other learners' runs": others}
    basis = next((basis for basis in speeds if speeds[basis]), "an assumption")
    return median(speeds.get(basis, [ASSUMED_SPEED])), basis


def kind_of(learner: dict[str, Any]) -> str:
    """Say what a learner's speed depends on: its name, and those of its options that are not numbers.

    Example:
        >>> kind_of({"name": "fixed", "lr": 0.1, "base": "sgd"})
        '{"base": "sgd", "name": "fixed"}'
    """
    return json.dumps(
        {name: value for name, value in learner.items() if not isinstance(value, int | float)}, sort_keys=True
    )


def _earlier_runs(folders: Sequence[Path]) -> Iterator[tuple[dict[str, Any], float]]:
    """Description and speed of this machine's finished runs below some folders."""
    seen: set[Path] = set()
    for folder in folders:
        for path in map(Path.resolve, run_directories(folder)):
            if path in seen or not all((path / name).exists() for name in ("config.json", "status.json")):
                continue
            seen.add(path)
            try:
                status = read_status(path)
                speed, host = status.get("samples_per_second"), (status.get("owner") or {}).get("host")
                if status.get("state") != "finished" or host != socket.gethostname() or not speed or speed > FASTEST:
                    continue
                config = read_config(path)
            except ValueError:
                continue  # damaged, or of another program: an estimate can do without
            yield {kind: config[kind] for kind in ("network", "learner")}, speed


def _runs(n: int, samples: int) -> str:
    return f"{n:,} × {samples // n:,}" if n else ""


def _duration(hours: float) -> str:
    return duration(max(60.0, 3600 * hours))  # whatever the speed, it takes a while until runs begin
