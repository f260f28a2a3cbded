"""What all runs have in common, whatever executes their steps: how far they are, and their records; needs no torch."""

import functools
import math
import operator
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from continual_metaopt.analysis.run_directory import SCHEMA_VERSION
from continual_metaopt.engines.observations import Observations
from continual_metaopt.optim.registry import family_of
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.damage import COUNTED
from continual_metaopt.runs.directory import RunDirectory
from continual_metaopt.runs.facts import describe_platform, describe_software
from continual_metaopt.runs.files import read_json, write_json
from continual_metaopt.runs.outcome import Interrupted, OnProgress, ShouldStop
from continual_metaopt.runs.process_settings import THREADS
from continual_metaopt.streams.samples import Samples
from continual_metaopt.streams.stream import Stream

CHECKPOINT_SECONDS = 30.0
MAX_UNSAVED = 2**18  # rows of tables in memory, whatever the time


class RunUnderWay(ABC):
    """Keep what a run has done so far, and record it; ``learn`` is left to what executes the steps.

    Nothing is written to the directory before ``begin``.

    Args:
        config: a resolved description.
        directory: of the run.
        stream: what it learns from.
        on_progress: called with the number of samples done and to do.
        should_stop: asked after every portion of samples.

    Attributes:
        engine: how the steps are executed, for the record.
        n_samples: samples that the run has learned from.
        n_correct: how many of them were predicted right.
        n_ended: experiences that have come to their end.
        n_correct_in_experience: right predictions in the current experience.
        loss_in_experience: sum of the losses in the current experience.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        stream: Stream,
        on_progress: OnProgress,
        should_stop: ShouldStop,
    ) -> None:
        self.config, self.directory, self.stream, self.info = config, directory, stream, stream.info
        self.on_progress, self.should_stop = on_progress, should_stop
        self.last_checkpoint = time.monotonic()
        self.engine: dict[str, str] = {}
        self.n_samples = self.n_correct = self.n_ended = self.n_correct_in_experience = 0
        self.loss_in_experience = 0.0
        self._measured: tuple[int, float] | None = None  # held-out accuracy last, after how many samples

    @property
    def within_experience(self) -> int:
        """Count the samples learned from in the current experience."""
        if self.n_ended == len(self.info.experiences):
            return 0
        return self.n_samples - self.info.experiences[self.n_ended].first_step

    @property
    def left_in_experience(self) -> int:
        """Count the samples of the current experience that are still to come; 0 after the last experience."""
        if self.n_ended == len(self.info.experiences):
            return 0
        return self.info.experiences[self.n_ended].n_samples - self.within_experience

    @property
    def until_measured(self) -> int:
        """Count the samples until held-out accuracy is measured, or the experience ends."""
        planned = next((step - self.n_samples for step in self.info.test_at if step > self.n_samples), math.inf)
        return int(min(self.left_in_experience, planned))

    @property
    def is_to_be_measured(self) -> bool:
        """Tell whether held-out accuracy is to be measured at this sample."""
        return self.n_samples in self.info.test_at

    def begin(self, checkpoint: dict[str, Any] | None, blocks: list[str], n_parameters: int) -> None:
        """Write the description, or go on after a checkpoint.

        Args:
            checkpoint: how far the run was then: what ``progress`` returned; None for a new run.
            blocks: names of the blocks of parameters that have a step size of their own.
            n_parameters: number of trainable parameters.

        Raises:
            ValueError: the checkpoint is of another stream than the one that is there now.
        """
        if checkpoint is None:
            self.directory.start(self._record(blocks, n_parameters))
            return
        self._require_same_stream()
        self._note_where_it_goes_on(checkpoint["n_samples"])
        self.directory.resume(checkpoint["progress"])
        for name in COUNTED:
            setattr(self, name, checkpoint[name])

    def progress(self, of_directory: dict[str, Any]) -> dict[str, Any]:
        """Say how far the run is, for a checkpoint; ``of_directory`` says how far its records are."""
        counted = {name: getattr(self, name) for name in COUNTED}
        return {"run_id": self.config.run_id, **counted, "progress": of_directory}

    def count_and_record(self, observations: Observations, seconds: float) -> None:
        """Record what was observed in ``seconds`` of learning."""
        n_correct = sum(map(bool, observations.correct))
        self.directory.learning_time += seconds
        self.directory.observe(observations, self.config.record_samples_every)
        self.n_samples += len(observations)
        self.n_correct += n_correct
        self.n_correct_in_experience += n_correct
        # one after the other, so that the sum does not depend on where portions end
        self.loss_in_experience = functools.reduce(operator.add, observations.loss, self.loss_in_experience)

    def report(self) -> None:
        """Tell the progress, and write a checkpoint if it is time to, or if the user asks to stop.

        Raises:
            Interrupted: the user does.
        """
        self.on_progress(self.n_samples, self.info.for_learner.n_samples)
        stop = self.should_stop()
        due = time.monotonic() - self.last_checkpoint > CHECKPOINT_SECONDS or self.directory.n_unsaved > MAX_UNSAVED
        if stop or due:
            self.checkpoint()
            self.last_checkpoint = time.monotonic()
        if stop:
            raise Interrupted

    @abstractmethod
    def checkpoint(self) -> None:
        """Write everything that is needed to go on later."""

    def record_test_accuracy(self, accuracy: Callable[[Samples], float]) -> None:
        """Record held-out accuracy amid an experience; argument as for ``end_experience``."""
        value = self._test_accuracy(accuracy)
        if value is not None:
            self.directory.measure([(self.n_samples, "test_accuracy", None, "value", value)])

    def end_experience(self, accuracy: Callable[[Samples], float]) -> None:
        """Record the end of an experience.

        Args:
            accuracy: measures the accuracy on held-out samples; called if that is wanted and there are any.
        """
        experience, classifies = self.info.experiences[self.n_ended], self._classifies
        self.directory.add_experience(
            experience=self.n_ended,
            classes=[str(label) for label in experience.classes],
            first_step=experience.first_step,
            n_samples=experience.n_samples,
            n_seen_before=experience.n_seen_before,
            n_correct=self.n_correct_in_experience if classifies else None,
            online_accuracy=self.n_correct_in_experience / experience.n_samples if classifies else None,
            mean_loss=self.loss_in_experience / experience.n_samples,
            test_accuracy=self._test_accuracy(accuracy),
        )
        self.n_ended, self.n_correct_in_experience, self.loss_in_experience = self.n_ended + 1, 0, 0.0

    @property
    def _classifies(self) -> bool:
        return self.info.for_learner.task == "classification"

    def _test_accuracy(self, accuracy: Callable[[Samples], float]) -> float | None:
        held_out = self.stream.test[self.n_ended]
        if not (self.config.evaluate and self._classifies and len(held_out)):
            return None
        if self._measured is None or self._measured[0] != self.n_samples:
            self._measured = self.n_samples, accuracy(held_out)
        return self._measured[1]

    def _require_same_stream(self) -> None:
        began_with = read_json(self.directory.path / "config.json")["stream_info"]["fingerprint"]
        if began_with != self.info.fingerprint:
            raise ValueError(
                f"the run began with another stream (fingerprint {began_with}, now {self.info.fingerprint}): "
                "the stored images or the stream's code have changed. Bring them back to go on, or move "
                f"'{self.directory.path}' elsewhere to begin again"
            )

    def _note_where_it_goes_on(self, step: int) -> None:
        """Add versions and machine to the description if they are not those of the attempt before."""
        path = self.directory.path / "config.json"
        record = read_json(path)
        before = record.get("resumed", [])
        now = {"versions": describe_software(), "platform": describe_platform(THREADS)}
        last = before[-1] if before else record
        if any(last.get(name) != value for name, value in now.items()):
            write_json(path, record | {"resumed": [*before, {"step": step, **now}]})

    def _record(self, blocks: list[str], n_parameters: int) -> dict[str, Any]:
        """Put together the content of config.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.config.run_id,
            **self.config.model_dump(mode="json"),
            "learned_step_sizes": self.config.learned_step_sizes,
            **({"family": family} if (family := family_of(self.config.learner.name)) else {}),
            "stream_info": self.info.as_record(),
            "blocks": blocks,
            "n_parameters": n_parameters,
            "versions": describe_software(),
            "platform": describe_platform(THREADS),
        }
