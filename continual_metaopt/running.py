"""One run, from its description to its directory; resumes where an earlier attempt stopped."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streams.quiet_avalanche  # noqa: F401

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from continual_metaopt.config import RunConfig, factory_of, import_modules
from continual_metaopt.engines.observations import Diverged, Observations
from continual_metaopt.engines.torch_engine import accuracy
from continual_metaopt.learner import OnlineLearner
from continual_metaopt.losses import criterion_of
from continual_metaopt.optim.registry import is_told, known_of_the_stream, make_optimizer, step_sizes_of
from continual_metaopt.recording import (
    SCHEMA_VERSION,
    RunDirectory,
    describe_platform,
    describe_software,
    read_json,
    write_json,
)
from streams import make_stream
from streams.benchmark import StreamBenchmark

CHECKPOINT_SECONDS = 30.0
SEEDING = threading.Lock()  # held between seeding PyTorch's random numbers and drawing initial weights
THREADS = 1  # the steps of small networks do not profit from more, and runs share the cores


class Interrupted(Exception):
    """The run was asked to stop; it can go on later."""


def run_one(
    config: RunConfig,
    path: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> str:
    """Do one run, or what is left of it.

    Args:
        config: a resolved description.
        path: the run directory.
        on_progress: called with the number of samples done and to do.
        should_stop: asked about twice a second; True ends the run so that it can go on later.

    Returns:
        The state that the run ended in: "finished", "diverged", or "failed" with the reason in ``status.json``.

    Raises:
        FileExistsError: the directory holds another run.
    """
    ended = state_of(path, config)
    if ended is not None:
        take_place(path, config)
        return ended
    directory = RunDirectory(path)
    run = None
    try:
        run = _Run(config, directory, on_progress, should_stop)
        run.learn()
    except Diverged as error:
        directory.finish("diverged", str(error), run.learner.engine if run else None)
        return "diverged"
    except Interrupted:
        directory.finish("failed", "interrupted by the user", None, keep_parts=True)
        return "failed"
    except Exception as error:
        directory.finish("failed", f"{type(error).__name__}: {error}", None, keep_parts=True)
        return "failed"
    directory.finish("finished", None, run.learner.engine)
    return "finished"


def state_of(path: Path, config: RunConfig) -> str | None:
    """How the run in a directory ended for good, or None if it has not.

    Raises:
        FileExistsError: the directory holds another run.
        ValueError: its description or status is damaged.
    """
    if not (path / "config.json").exists():
        return None
    run_id = read_json(path / "config.json").get("run_id")
    if run_id != config.run_id:
        raise FileExistsError(f"'{path}' already holds another run ({run_id}); choose another folder with --out")
    if not (path / "status.json").exists():
        return None
    state: str = read_json(path / "status.json")["state"]
    return state if state in ("finished", "diverged") else None


def available_device(name: str) -> torch.device:
    """A device by name.

    Raises:
        ValueError: PyTorch cannot use it here.
    """
    device = torch.device(name)
    module = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(device.type)
    if module is not None and not module.is_available():
        raise ValueError(f'device="{name}" is not possible: PyTorch finds no such device here; use device="cpu"')
    return device


def take_place(path: Path, config: RunConfig) -> None:
    """Note the place in tables and figures that a study gives to a run that has ended."""
    record = read_json(path / "config.json")
    if record.get("order") != config.order:
        write_json(path / "config.json", record | {"order": config.order})


class RunUnderWay:
    """The objects of a run and what it has done so far, whatever executes its steps.

    Nothing is written to the directory before ``begin``.

    Args:
        config: a resolved description.
        directory: of the run.

    Attributes:
        engine: how the steps are executed, for the record.
        random: state of torch's random numbers, for the checkpoint.
        n_samples: samples that the run has learned from.
        n_correct: how many of them were predicted right.
        n_ended: experiences that have come to their end.
        n_correct_in_experience: right predictions in the current experience.
    """

    def __init__(self, config: RunConfig, directory: RunDirectory) -> None:
        torch.set_num_threads(THREADS)
        torch.set_flush_denormal(True)  # decaying traces become denormal numbers, which are slow to compute with
        import_modules(config.imports)
        self.config, self.directory = config, directory
        self.benchmark: StreamBenchmark = make_stream(config.stream.name, **config.stream.options, seed=config.seed)
        sizes = self.benchmark.info.for_learner
        with SEEDING:
            torch.manual_seed(config.seed)
            self.model: nn.Module = factory_of("network", config.network.name)(
                n_outputs=sizes.n_outputs, input_shape=sizes.input_shape, **config.network.options
            )
            known = known_of_the_stream(config.learner.name, sizes.n_samples)
            self.optimizer = make_optimizer(config.learner.name, self.model, **known, **config.learner.options)
            self.random = torch.get_rng_state()
        self.engine: dict[str, str] = {}
        self.n_samples = self.n_correct = self.n_ended = self.n_correct_in_experience = 0

    @property
    def n_in_stream(self) -> int:
        """Length of the whole stream."""
        return self.benchmark.info.for_learner.n_samples

    @property
    def within_experience(self) -> int:
        """How many of the samples belong to the current experience."""
        return self.n_samples - [*self.benchmark.info.boundaries, self.n_samples][self.n_ended]

    @property
    def left_in_experience(self) -> int:
        """How many samples of the current experience are still to come; 0 after the last experience."""
        if self.n_ended == len(self.benchmark.info.experiences):
            return 0
        return self.benchmark.info.experiences[self.n_ended].n_samples - self.within_experience

    @property
    def until_measured(self) -> int:
        """How many samples are to come until held-out accuracy is measured, or the experience ends."""
        planned = [step - self.n_samples for step in self.benchmark.info.test_at if step > self.n_samples]
        return min(self.left_in_experience, *planned[:1]) if planned else self.left_in_experience

    def begin(self) -> None:
        """Write the description, or go on from the checkpoint if there is one."""
        checkpoint = self.directory.path / "checkpoint.pt"
        if checkpoint.exists():
            self._restore(torch.load(checkpoint, weights_only=True))
        else:
            self.directory.start(self._record())

    def count_and_record(self, observations: Observations, seconds: float) -> None:
        """Record what was observed in ``seconds`` of learning."""
        n_correct = sum(map(bool, observations.correct))
        self.directory.learning_time += seconds
        self.directory.observe(observations)
        self.n_samples += len(observations)
        self.n_correct += n_correct
        self.n_correct_in_experience += n_correct

    def checkpoint(self) -> None:
        """Write everything that is needed to go on later."""
        self.directory.checkpoint(self._save, self.engine)

    @property
    def is_to_be_measured(self) -> bool:
        """Whether held-out accuracy is to be measured at this sample."""
        return self.n_samples in self.benchmark.info.test_at

    def measure(self, model: nn.Module, device: torch.device) -> None:
        """Record held-out accuracy amid an experience; arguments as for ``end_experience``."""
        value = self._test_accuracy(model, device)
        if value is not None:
            self.directory.add_measurement(
                step=self.n_samples, quantity="test_accuracy", block=None, statistic="value", value=value
            )

    def end_experience(self, model: nn.Module, device: torch.device) -> None:
        """Measure held-out accuracy at the end of an experience, and record the experience.

        Args:
            model: the network with its current weights.
            device: where that network is.
        """
        experience = self.benchmark.info.experiences[self.n_ended]
        classifies = self.benchmark.info.for_learner.task == "classification"
        self.directory.add_experience(
            experience=self.n_ended,
            classes=[str(label) for label in experience.classes],
            first_step=experience.first_step,
            n_samples=experience.n_samples,
            n_seen_before=experience.n_seen_before,
            n_correct=self.n_correct_in_experience if classifies else None,
            online_accuracy=self.n_correct_in_experience / experience.n_samples if classifies else None,
            test_accuracy=self._test_accuracy(model, device),
        )
        self.n_ended, self.n_correct_in_experience = self.n_ended + 1, 0

    def _test_accuracy(self, model: nn.Module, device: torch.device) -> float | None:
        """On the held-out samples of the current experience; None where there are none, or it is not wanted."""
        test = self.benchmark.test_stream[self.n_ended].dataset
        classifies = self.benchmark.info.for_learner.task == "classification"
        return accuracy(model, test, device) if self.config.evaluate and classifies and len(test) else None

    def _record(self) -> dict[str, Any]:
        """The content of config.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.config.run_id,
            **self.config.model_dump(mode="json"),
            "learned_step_sizes": self.config.learned_step_sizes,
            "stream_info": self.benchmark.info.as_record(),
            "blocks": list(step_sizes_of(self.optimizer)),
            "n_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "versions": describe_software(),
            "platform": describe_platform(THREADS),
        }

    def _save(self, path: Path, progress: dict[str, Any]) -> None:
        torch.save(
            {
                "run_id": self.config.run_id,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": self.random,
                "n_samples": self.n_samples,
                "n_correct": self.n_correct,
                "n_ended": self.n_ended,
                "n_correct_in_experience": self.n_correct_in_experience,
                "progress": progress,
            },
            path,
        )

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.directory.resume(checkpoint["progress"])
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.random = checkpoint["random"]
        self.n_samples, self.n_correct = checkpoint["n_samples"], checkpoint["n_correct"]
        self.n_ended, self.n_correct_in_experience = checkpoint["n_ended"], checkpoint["n_correct_in_experience"]


class _Run(RunUnderWay, SupervisedPlugin):
    """A run by ``OnlineLearner``: it records what the learner observes, and each experience's end."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        on_progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> None:
        super().__init__(config, directory)
        self.on_progress, self.should_stop = on_progress, should_stop
        self.model.to(available_device(config.device))
        self.learner = OnlineLearner(
            model=self.model,
            optimizer=self.optimizer,
            criterion=criterion_of(self.benchmark.info.for_learner.task),
            engine=config.engine,
            device=config.device,
            plugins=[self],
            recorder=self,
            record_every=config.record_every,
            hand_over_at=self.benchmark.info.test_at,
            told=is_told(config.learner.name),
        )
        self.begin()
        self.learner.continue_from(self.n_samples, self.n_correct, self.within_experience)
        torch.set_rng_state(self.random)
        self.last_checkpoint = time.monotonic()

    def learn(self) -> None:
        """Learn from all experiences that are left."""
        self.last_observed = time.monotonic()
        if self.n_ended < len(self.benchmark.train_stream):
            self.learner.train(self.benchmark.train_stream[self.n_ended :])

    def observe(self, observations: Observations) -> None:
        """Record what the learner observed, and stop it if asked to."""
        self.count_and_record(observations, time.monotonic() - self.last_observed)
        if self.is_to_be_measured:
            self.measure(self.learner.model, self.learner.device)
        self.on_progress(self.n_samples, self.n_in_stream)
        stop = self.should_stop()
        if stop or time.monotonic() - self.last_checkpoint > CHECKPOINT_SECONDS:
            self.engine, self.random = self.learner.engine, torch.get_rng_state()
            self.checkpoint()
            self.last_checkpoint = time.monotonic()
        if stop:
            raise Interrupted
        self.last_observed = time.monotonic()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Record the end of an experience."""
        self.end_experience(strategy.model, strategy.device)
        self.last_observed = time.monotonic()
