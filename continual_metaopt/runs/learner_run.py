"""One run, from its description to its directory; resumes where an earlier attempt stopped."""

import time
from pathlib import Path
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import torch
from avalanche.training.plugins import SupervisedPlugin

from continual_metaopt.engines.observations import Diverged, Observations
from continual_metaopt.engines.torch_engine import accuracy, check_weights, state_at_end
from continual_metaopt.engines.undisturbed import SHARED
from continual_metaopt.learner.loading import n_batches
from continual_metaopt.learner.metrics.diagnostics import named_diagnostics
from continual_metaopt.learner.online_learner import OnlineLearner, quiet_evaluator
from continual_metaopt.optim.protocol import step_sizes_of
from continual_metaopt.optim.registry import is_told
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.directory import RunDirectory
from continual_metaopt.runs.outcome import OnProgress, ShouldStop
from continual_metaopt.runs.preparing import Beginning
from continual_metaopt.runs.process_settings import available_device, set_up_process
from continual_metaopt.runs.under_way import RunUnderWay
from continual_metaopt.streams.benchmark import SampleDataset, StreamBenchmark
from continual_metaopt.streams.samples import Samples


class LearnerRun(RunUnderWay, SupervisedPlugin):
    """Let ``OnlineLearner`` do a run, and record what it observes and each experience's end."""

    def __init__(
        self, config: RunConfig, directory: RunDirectory, on_progress: OnProgress, should_stop: ShouldStop
    ) -> None:
        set_up_process()
        self.begun = Beginning(config)
        super().__init__(config, directory, self.begun.stream, on_progress, should_stop)
        benchmark = StreamBenchmark(self.stream)
        batch_size = self.info.for_learner.batch_size
        every = n_batches(config.diagnostics_every, batch_size)
        self.diagnostics = named_diagnostics(config.diagnostics, every, benchmark.test_stream)
        self.train_stream = benchmark.train_stream
        self.begun.model.to(available_device(config.device))
        self.learner = OnlineLearner(
            model=self.begun.model,
            optimizer=self.begun.optimizer,
            criterion=self.begun.criterion,
            engine=config.engine,
            batch_size=batch_size,
            device=config.device,
            plugins=[self],
            evaluator=quiet_evaluator(*self.diagnostics),
            recorder=self,
            record_every=config.record_every,
            hand_over_at=self.info.test_at,
            told=is_told(config.learner.name),
        )
        self._begin_or_resume()
        self.learner.continue_from(self.n_samples, self.n_correct, self.within_experience, self._n_updates())
        with SHARED:
            torch.set_rng_state(self.begun.random)

    def _begin_or_resume(self) -> None:
        """Write the description, or go on from the checkpoint if there is one."""
        checkpoint = self.begun.restore(self.directory.path)
        self.begin(checkpoint, list(step_sizes_of(self.begun.optimizer)), self.begun.n_parameters)
        if checkpoint is not None:
            for metric, state in zip(self.diagnostics, checkpoint.get("diagnostics", []), strict=True):
                metric.restore(state)

    def learn(self) -> None:
        """Learn from all experiences that are left.

        Raises:
            Diverged: a loss, a meta gradient, or a weight at the end is NaN or infinite.
        """
        try:
            if self.n_ended < len(self.train_stream):
                self.learner.train(self.train_stream[self.n_ended :])
            self._check_weights()
        finally:
            self.engine = self.learner.engine

    def _check_weights(self) -> None:
        try:
            check_weights(self.begun.optimizer, self.n_samples)
        except Diverged as error:
            error.measurements += state_at_end(self.begun.model, self.begun.optimizer, error)
            raise

    def checkpoint(self) -> None:
        """Write everything that is needed to go on later."""
        self.engine, self.begun.random = self.learner.engine, torch.get_rng_state()
        self.directory.checkpoint(self._save, self.engine)

    def _save(self, path: Path, progress: dict[str, Any]) -> None:
        state = {
            "model": self.begun.model.state_dict(),
            "optimizer": self.begun.optimizer.state_dict(),
            "random": self.begun.random,
            "diagnostics": [metric.state() for metric in self.diagnostics],
        }
        with path.open("wb") as file:  # so that a full disk shows as such
            torch.save(self.progress(progress) | state, file)

    def _n_updates(self) -> int:
        ended = [experience.n_samples for experience in self.info.experiences[: self.n_ended]]
        return sum(n_batches(n, self.info.for_learner.batch_size) for n in [*ended, self.within_experience])

    def observe(self, observations: Observations) -> None:
        """Record what the learner observed, and stop it if asked to."""
        self.count_and_record(observations, time.monotonic() - observations.began)
        if self.is_to_be_measured:
            self.record_test_accuracy(self._accuracy)
        self.report()

    def measure(self, rows: list[tuple[int, str, str | None, str, float]]) -> None:
        """Record what the diagnostics measured."""
        self.directory.measure(rows)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Record the end of an experience."""
        self.end_experience(self._accuracy)

    def _accuracy(self, samples: Samples) -> float:
        return accuracy(self.learner.model, SampleDataset(samples), self.learner.device)
