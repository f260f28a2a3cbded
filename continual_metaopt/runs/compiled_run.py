"""One run by compiled code on plain arrays, in a process that needs neither torch nor Avalanche."""

import json
import math
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.analysis.files import open_regular
from continual_metaopt.analysis.run_directory import COMPILED_CHECKPOINT
from continual_metaopt.engines import COMPILED
from continual_metaopt.engines.compiled import kernels
from continual_metaopt.engines.compiled.learner import CompiledLearner
from continual_metaopt.engines.observations import Diverged, Observations
from continual_metaopt.runs.components import import_modules
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.directory import RunDirectory
from continual_metaopt.runs.outcome import OnProgress, ShouldStop
from continual_metaopt.runs.under_way import RunUnderWay
from continual_metaopt.streams import plan_stream


@dataclass(frozen=True)
class PreparedRun:
    """Carry a run that compiled code can do from the process that prepared it to the one that executes it.

    Attributes:
        config: a resolved description.
        learner: network and optimizer, as far as they have learned.
        n_parameters: number of trainable parameters.
        checkpoint: how far the run is (``RunUnderWay.progress``), None for a new one.
    """

    config: RunConfig
    learner: CompiledLearner
    n_parameters: int
    checkpoint: dict[str, Any] | None


class CompiledRun(RunUnderWay):
    """Execute a prepared run by compiled code, and record it; the other arguments are those of ``RunUnderWay``."""

    def __init__(
        self, prepared: PreparedRun, directory: RunDirectory, on_progress: OnProgress, should_stop: ShouldStop
    ) -> None:
        config = prepared.config
        import_modules(config.imports)
        stream = plan_stream(config.stream.name, **config.stream.options, seed=config.seed)
        super().__init__(config, directory, stream, on_progress, should_stop)
        self.engine, self.learner = COMPILED, prepared.learner
        self.begin(prepared.checkpoint, self.learner.blocks, prepared.n_parameters)

    def learn(self) -> None:
        """Learn from all samples that are left."""
        try:
            self.learner.compile(self.stream.train[0])
            while self.n_ended < len(self.info.experiences):
                while self.left_in_experience:
                    self._learn_portion()
                self.end_experience(self.learner.accuracy)
            self.learner.check_weights(self.n_samples)
        except Diverged as error:
            error.measurements += self.learner.state_at_end(error.step)
            raise

    def _learn_portion(self) -> None:
        seen, start = Observations(self.n_ended, self.n_samples), time.monotonic()
        samples = self.stream.train[self.n_ended]
        try:
            at_most = self.until_measured
            self.learner.learn(samples, self.within_experience, seen, self.config.record_every, at_most)
        finally:
            if len(seen):
                self.count_and_record(seen, time.monotonic() - start)
                if self.is_to_be_measured:
                    self.record_test_accuracy(self.learner.accuracy)
                self.report()

    def checkpoint(self) -> None:
        """Write everything that is needed to go on later."""
        self.directory.checkpoint(self._save, self.engine, COMPILED_CHECKPOINT)

    def _save(self, path: Path, progress: dict[str, Any]) -> None:
        with path.open("wb") as file:
            np.savez(file, about=json.dumps(self.progress(progress)), **self.learner.learned._asdict())


def read_compiled_checkpoint(path: Path) -> dict[str, Any]:
    """Read how far a run was at a checkpoint, and what it had ``learned``."""
    with open_regular(path) as file, zipfile.ZipFile(file) as content:
        about: dict[str, Any] = json.loads(str(_array(content, "about")))
        return about | {"learned": kernels.Learned(**{name: _array(content, name) for name in kernels.Learned._fields})}


def _array(content: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read an array of a file that ``numpy.savez`` has written, once its size is known.

    Raises:
        KeyError: there is none of this name.
        ValueError: it is compressed or of another size than it says.
    """
    entry = content.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its array {name} is compressed, as this package's are not")
    with content.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"its array {name} has a header of version {version}")
        shape, in_columns, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
            raise ValueError(f"its array {name} does not have the size that its header says")
        numbers = np.frombuffer(file.read(), dtype)
    return numbers.reshape(shape, order="F" if in_columns else "C").copy()
