"""What all runs have in common, whatever executes their steps: how far they are, and their records; needs no torch."""

import errno
import functools
import math
import operator
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from continual_metaopt.analysis.files import is_regular, real_folder
from continual_metaopt.config import RunConfig
from continual_metaopt.engines.observations import Diverged, Observations
from continual_metaopt.in_use import RunInUse
from continual_metaopt.process_settings import THREADS
from continual_metaopt.recording import (
    CHECKPOINT,
    COMPILED_CHECKPOINT,
    SCHEMA_VERSION,
    STATES,
    RunDirectory,
    describe_platform,
    describe_software,
    has_records,
    is_marked,
    read_json,
    remove_leftovers,
    set_aside,
    write_json,
)
from continual_metaopt.streams.samples import Samples
from continual_metaopt.streams.stream import Stream

CHECKPOINT_SECONDS = 30.0
MAX_UNSAVED = 2**18  # rows of tables in memory, whatever the time

OnProgress = Callable[[int, int], None]
ShouldStop = Callable[[], bool]


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""


def never() -> bool:
    """Do not stop."""
    return False


class Interrupted(Exception):
    """The run was asked to stop; it can go on later."""


class RunUnderWay(ABC):
    """What a run has done so far.

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
        on_progress: OnProgress = no_progress,
        should_stop: ShouldStop = never,
    ) -> None:
        self.config, self.directory, self.stream, self.info = config, directory, stream, stream.info
        self.on_progress, self.should_stop = on_progress, should_stop
        self.last_checkpoint = time.monotonic()
        self.engine: dict[str, str] = {}
        self.n_samples = self.n_correct = self.n_ended = self.n_correct_in_experience = 0
        self.loss_in_experience = 0.0
        self._measured: tuple[int, float] | None = None  # held-out accuracy last, after how many samples

    @property
    def n_in_stream(self) -> int:
        """Length of the whole stream."""
        return self.info.for_learner.n_samples

    @property
    def within_experience(self) -> int:
        """How many of the samples belong to the current experience."""
        if self.n_ended == len(self.info.experiences):
            return 0
        return self.n_samples - self.info.experiences[self.n_ended].first_step

    @property
    def left_in_experience(self) -> int:
        """How many samples of the current experience are still to come; 0 after the last experience."""
        if self.n_ended == len(self.info.experiences):
            return 0
        return self.info.experiences[self.n_ended].n_samples - self.within_experience

    @property
    def until_measured(self) -> int:
        """How many samples are to come until held-out accuracy is measured, or the experience ends."""
        planned = next((step - self.n_samples for step in self.info.test_at if step > self.n_samples), math.inf)
        return int(min(self.left_in_experience, planned))

    @property
    def is_to_be_measured(self) -> bool:
        """Whether held-out accuracy is to be measured at this sample."""
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
        self.n_samples, self.n_correct = checkpoint["n_samples"], checkpoint["n_correct"]
        self.n_ended, self.n_correct_in_experience = checkpoint["n_ended"], checkpoint["n_correct_in_experience"]
        self.loss_in_experience = checkpoint["loss_in_experience"]

    def progress(self, of_directory: dict[str, Any]) -> dict[str, Any]:
        """How far the run is, for a checkpoint; ``of_directory`` is how far its records are."""
        return {
            "run_id": self.config.run_id,
            "n_samples": self.n_samples,
            "n_correct": self.n_correct,
            "n_ended": self.n_ended,
            "n_correct_in_experience": self.n_correct_in_experience,
            "loss_in_experience": self.loss_in_experience,
            "progress": of_directory,
        }

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
        self.on_progress(self.n_samples, self.n_in_stream)
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
        """The content of config.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.config.run_id,
            **self.config.model_dump(mode="json"),
            "learned_step_sizes": self.config.learned_step_sizes,
            "stream_info": self.info.as_record(),
            "blocks": blocks,
            "n_parameters": n_parameters,
            "versions": describe_software(),
            "platform": describe_platform(THREADS),
        }


class Learns(Protocol):
    """A run that can be brought to its end."""

    engine: dict[str, str]

    def learn(self) -> None:
        """Learn from all samples that are left."""
        ...


def bring_to_end(directory: RunDirectory, make: Callable[[], Learns]) -> str:
    """Make a run and let it learn, and record how it ended.

    Args:
        directory: of the run.
        make: makes it; what goes wrong there is recorded too.

    Returns:
        The state that the run ended in: "finished", "diverged", or "failed" with the reason in ``status.json``.

    Raises:
        RunInUse: another process has begun to work on the run.
    """
    try:
        run = make()
        try:
            run.learn()
        except Diverged as error:
            directory.measure(error.measurements)
            directory.finish("diverged", str(error), run.engine)
            return "diverged"
        directory.finish("finished", None, run.engine)
        return "finished"
    except Exception as error:
        return fail(directory, error)


def fail(directory: RunDirectory, error: Exception) -> str:
    """Record that a run failed, in a way that it may go on later; returns that state.

    Raises:
        OSError: not even the status can be written.
        RunInUse: another process works on the run, so nothing is written.
    """
    if isinstance(error, RunInUse):
        raise error
    reason = reason_of(error)
    try:
        directory.finish("failed", reason, None, keep_parts=True)
    except RunInUse:
        raise
    except Exception:  # no room for the last rows, perhaps, which are made again from the last checkpoint
        try:
            directory.say("failed", reason)
        except Exception as second:
            raise OSError(f"{reason}; its status could not be written ({second})") from error
    return "failed"


GOES_ON = "the same command then goes on from the last checkpoint"
NO_ROOM = f"The disk is full: make room; {GOES_ON}"
NO_ACCESS = f"Access is needed: change permissions, or mount the disk for writing; {GOES_ON}"
NO_MEMORY = (
    "There is not enough memory: do fewer runs at a time, or take a smaller network or a lower memory_limit of the "
    f"stream; {GOES_ON}"
)
WORDS_OF_NO_MEMORY = ("allocate memory", "out of memory", "failed to map segment")
ADVICE = {
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: NO_ROOM,
    errno.EROFS: NO_ACCESS,
    errno.EACCES: NO_ACCESS,
    errno.EPERM: NO_ACCESS,
    errno.ENOMEM: NO_MEMORY,
    errno.ENOENT: f"A file is missing: bring it back; {GOES_ON}",
}


def reason_of(error: BaseException) -> str:
    """The sentences about an error in a run's status: what happened, and what to do about it."""
    if isinstance(error, Interrupted):
        return "interrupted by the user"
    if isinstance(error, RunInUse):
        return str(error)
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    no_memory = isinstance(error, MemoryError) or any(words in reason.lower() for words in WORDS_OF_NO_MEMORY)
    advice = NO_MEMORY if no_memory else ADVICE.get(getattr(error, "errno", None) or 0)
    return f"{reason}. {advice}" if advice else reason


def earlier_state(path: Path, config: RunConfig) -> str | None:
    """How the run in a directory ended for good, or None if it has not.

    The place and the label in tables and figures that its study now gives to a run that has ended are noted, and what
    its end left half done is brought to an end. A damaged status is set aside, and the run goes on from its checkpoint
    or begins again. Where the description is damaged or missing, or the status of a run without checkpoint is missing,
    all that was recorded is set aside.

    Raises:
        FileExistsError: the directory holds another run, or what no run has written, or is a link.
    """
    real_folder(path)
    if not path.is_dir() or not any(path.iterdir()):
        return None
    try:
        record = read_json(path / "config.json")
    except (OSError, ValueError) as error:
        if not isinstance(error, FileNotFoundError | ValueError):
            raise
        if not is_marked(path, config.run_id):
            raise _not_a_run(path, error) from error
        if has_records(path) or not isinstance(error, FileNotFoundError):
            set_aside(path, path / "config.json", error)
        return None
    if "run_id" not in record:
        raise _not_a_run(path)
    if record["run_id"] != config.run_id:
        raise FileExistsError(
            f"'{path}' already holds another run ({record['run_id']}); choose another folder with --out"
        )
    status = path / "status.json"
    goes_on = any(is_regular(path / name) for name in (CHECKPOINT, COMPILED_CHECKPOINT))
    try:
        told = read_json(status)
        state: str = told.get("state", "")
        if state not in STATES:
            raise ValueError(f"state {state!r} is none of {', '.join(STATES)}")
    except FileNotFoundError as error:
        if not goes_on and has_records(path):
            set_aside(path, status, error)
        return None
    except ValueError as error:
        set_aside(path, status, error, [status.name] if goes_on else [])
        return None
    if state not in ("finished", "diverged"):
        return None
    remove_leftovers(path)
    if told.pop("superseded", None):  # by a version of the study that was given up again
        write_json(status, told)
    named = {"order": config.order, "label": config.label, "entry": config.entry}
    if any(record.get(name) != value for name, value in named.items()):
        write_json(path / "config.json", record | named)
    return state


def _not_a_run(path: Path, error: Exception | None = None) -> FileExistsError:
    """What to say of a directory that no run has written, or perhaps none, if there is an error in its description."""
    names = sorted(entry.name for entry in path.iterdir())
    what = f"'{path}' holds '{names[0]}', which no run has written"
    if "study.json" in names:
        what = f"'{path}' is a study's folder"
    elif isinstance(error, ValueError):
        what = f"{error}, so that nobody can tell whose folder it is in"
    return FileExistsError(f"{what}; choose another folder with --out, which need not exist")
