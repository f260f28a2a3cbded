"""One run, from its description to its directory; resumes where an earlier attempt stopped."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from continual_metaopt.engines.observations import Diverged, Observations
from continual_metaopt.engines.torch_engine import accuracy, check_weights, state_at_end
from continual_metaopt.engines.undisturbed import SHARED
from continual_metaopt.learner.loading import n_batches
from continual_metaopt.learner.metrics.diagnostics import named_diagnostics
from continual_metaopt.learner.metrics.online import OnlineMetric
from continual_metaopt.learner.online_learner import OnlineLearner, quiet_evaluator
from continual_metaopt.optim.protocol import step_sizes_of
from continual_metaopt.optim.registry import is_told
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.directory import RunDirectory
from continual_metaopt.runs.outcome import OnProgress, ShouldStop, never, no_progress
from continual_metaopt.runs.preparing import Beginning
from continual_metaopt.runs.process_settings import available_device, set_up_process
from continual_metaopt.runs.under_way import RunUnderWay
from continual_metaopt.streams.benchmark import SampleDataset, StreamBenchmark
from continual_metaopt.streams.samples import Samples


class TorchRun(RunUnderWay):
    """A run whose network and optimizer are PyTorch's, whatever executes its steps.

    Args:
        config: a resolved description.
        directory: of the run.
        on_progress, should_stop: as for ``run_one``.

    Attributes:
        diagnostics: metrics of what happens inside the network.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        on_progress: OnProgress = no_progress,
        should_stop: ShouldStop = never,
    ) -> None:
        set_up_process()
        self.begun = Beginning(config)
        self.model, self.optimizer, self.criterion = self.begun.model, self.begun.optimizer, self.begun.criterion
        self.diagnostics: list[OnlineMetric] = []
        super().__init__(config, directory, self.begun.stream, on_progress, should_stop)

    def begin_or_resume(self) -> None:
        """Write the description, or go on from the checkpoint if there is one."""
        checkpoint = self.begun.restore(self.directory.path)
        self.begin(checkpoint, list(step_sizes_of(self.optimizer)), self.begun.n_parameters)
        if checkpoint is not None:
            for metric, state in zip(self.diagnostics, checkpoint.get("diagnostics", []), strict=True):
                metric.restore(state)

    def checkpoint(self) -> None:
        """Write everything that is needed to go on later."""
        self.directory.checkpoint(self._save, self.engine)

    def check_weights(self) -> None:
        """Stop at weights that are not numbers, at the end of the stream.

        Raises:
            Diverged: a weight is NaN or infinite.
        """
        try:
            check_weights(self.optimizer, self.n_samples)
        except Diverged as error:
            error.measurements += state_at_end(self.model, self.optimizer, error)
            raise

    def measure_and_end_experience(self, model: nn.Module, device: torch.device) -> None:
        """Measure held-out accuracy at the end of an experience, and record the experience.

        Args:
            model: the network with its current weights.
            device: where that network is.
        """
        self.end_experience(_accuracy_of(model, device))

    def measure_amid_experience(self, model: nn.Module, device: torch.device) -> None:
        """Measure and record held-out accuracy; arguments as for ``measure_and_end_experience``."""
        self.record_test_accuracy(_accuracy_of(model, device))

    def _save(self, path: Path, progress: dict[str, Any]) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self.begun.random,
            "diagnostics": [metric.state() for metric in self.diagnostics],
        }
        with path.open("wb") as file:  # so that a full disk shows as such
            torch.save(self.progress(progress) | state, file)


def _accuracy_of(model: nn.Module, device: torch.device) -> Callable[[Samples], float]:
    return lambda samples: accuracy(model, SampleDataset(samples), device)


class LearnerRun(TorchRun, SupervisedPlugin):
    """A run by ``OnlineLearner``: it records what the learner observes, and each experience's end."""

    def __init__(
        self, config: RunConfig, directory: RunDirectory, on_progress: OnProgress, should_stop: ShouldStop
    ) -> None:
        super().__init__(config, directory, on_progress, should_stop)
        self.benchmark = StreamBenchmark(self.stream)
        batch_size = self.info.for_learner.batch_size
        every = n_batches(config.diagnostics_every, batch_size)
        self.diagnostics = named_diagnostics(config.diagnostics, every, self.benchmark.test_stream)
        self.model.to(available_device(config.device))
        self.learner = OnlineLearner(
            model=self.model,
            optimizer=self.optimizer,
            criterion=self.criterion,
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
        self.begin_or_resume()
        self.learner.continue_from(self.n_samples, self.n_correct, self.within_experience, self._n_updates())
        with SHARED:
            torch.set_rng_state(self.begun.random)

    def learn(self) -> None:
        """Learn from all experiences that are left."""
        try:
            if self.n_ended < len(self.benchmark.train_stream):
                self.learner.train(self.benchmark.train_stream[self.n_ended :])
            self.check_weights()
        finally:
            self.engine = self.learner.engine

    def checkpoint(self) -> None:
        """Write everything that is needed to go on later."""
        self.engine, self.begun.random = self.learner.engine, torch.get_rng_state()
        super().checkpoint()

    def _n_updates(self) -> int:
        ended = [experience.n_samples for experience in self.info.experiences[: self.n_ended]]
        return sum(n_batches(n, self.info.for_learner.batch_size) for n in [*ended, self.within_experience])

    def observe(self, observations: Observations) -> None:
        """Record what the learner observed, and stop it if asked to."""
        self.count_and_record(observations, time.monotonic() - observations.began)
        if self.is_to_be_measured:
            self.measure_amid_experience(self.learner.model, self.learner.device)
        self.report()

    def measure(self, rows: list[tuple[int, str, str | None, str, float]]) -> None:
        """Record what the diagnostics measured."""
        self.directory.measure(rows)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Record the end of an experience."""
        self.measure_and_end_experience(strategy.model, strategy.device)
