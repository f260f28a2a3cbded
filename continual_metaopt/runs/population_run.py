"""Many runs side by side in one process, with the records that ``running.run_one`` would leave of each."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import torch
from avalanche.models import DynamicModule
from torch import Tensor

from continual_metaopt.engines.observations import MAX_SAMPLES, MAX_SECONDS, WEIGHTS_CHECKED_EVERY, Diverged
from continual_metaopt.engines.population_engine import Population, Replica, check_alike
from continual_metaopt.engines.torch_engine import state_at_end
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.runs import under_way
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.directory import RunDirectory
from continual_metaopt.runs.learner_run import TorchRun
from continual_metaopt.runs.outcome import Interrupted, OnProgress, ShouldStop, earlier_state, fail, never, no_progress
from continual_metaopt.runs.owner import alone_in
from continual_metaopt.runs.process_settings import available_device

FIRST_PORTION = 10  # samples per run, before it is known how long they take
MAX_BYTES = 2**28  # of inputs in one portion


def run_population(
    configs: Sequence[RunConfig],
    paths: Sequence[Path],
    device: str | torch.device = "cpu",
    on_progress: OnProgress = no_progress,
    should_stop: ShouldStop = never,
) -> list[str]:
    """Do runs, or what is left of them, by the population engine.

    Their networks, blocks, base and meta updates must be equal. Seeds, streams, step sizes, discounts and weight decays
    may differ, and so may the lengths of streams and where their experiences end. Runs that stopped at different
    samples are brought level first. ``run_one`` can go on with any of them, and this function with any of its runs.

    Args:
        configs: resolved descriptions.
        paths: their run directories.
        device: where they learn, "cpu" or a CUDA device.
        on_progress: called with the numbers of samples done and to do, of all runs that had not ended before.
        should_stop: asked about twice a second; True ends all runs so that they can go on later.

    Returns:
        The state in which each run ended: "finished", "diverged", or "failed" with the reason in its ``status.json``.

    Raises:
        FileExistsError: a directory holds another run. Nothing has been run.
        RunInUse: another process works on one of the runs. Nothing has been run.
        ValueError: the runs cannot be done side by side; the message says what differs. Nothing has been run.
    """
    if len({path.resolve() for path in paths}) < len(configs):
        raise ValueError("each run needs a directory of its own")
    runs: dict[int, TorchRun] = {}
    with ExitStack() as stack:
        states: list[str | None] = [None] * len(paths)
        # those that exist first, so that a mistake shows before others are made
        for number in sorted(range(len(paths)), key=lambda number: (not paths[number].exists(), paths[number])):
            stack.enter_context(alone_in(paths[number]))
            states[number] = earlier_state(paths[number], configs[number])
        for number, (config, path) in enumerate(zip(configs, paths, strict=True)):
            if states[number] is not None:
                continue
            directory = RunDirectory(path)
            try:
                runs[number] = TorchRun(config, directory)
            except Exception as error:
                states[number] = fail(directory, error)
        if runs:
            _check_side_by_side(list(runs.values()))
            course = _Course(list(runs.values()), available_device(str(device)), on_progress, should_stop)
            course.run()
            for number, run in runs.items():
                states[number] = course.states[run]
    return [str(state) for state in states]


class _Course:
    """What runs that learn side by side have in common: the device, the clock, and how each has ended."""

    def __init__(
        self,
        runs: list[TorchRun],
        device: torch.device,
        on_progress: OnProgress,
        should_stop: ShouldStop,
    ) -> None:
        self.runs, self.device = runs, device
        self.on_progress, self.should_stop = on_progress, should_stop
        self.states: dict[TorchRun, str] = {}
        self.last_checkpoint = time.monotonic()

    def run(self) -> None:
        """Bring all runs to an end, or to where they can be gone on with later."""
        for run in self.runs:
            run.engine = {"name": "population", "reason": f"{len(self.runs)} runs side by side on {self.device}"}
            try:
                run.begin_or_resume()
            except Exception as error:
                self.states[run] = fail(run.directory, error)
        try:
            while going := self._going():
                first = min(run.n_samples for run in going)
                level = [run for run in going if run.n_samples == first]
                ends = [run.n_in_stream for run in level] + [run.n_samples for run in going if run not in level]
                self._learn(level, min(ends))
        except Exception as error:
            for run in self._going():
                self.states[run] = fail(run.directory, error)

    def _learn(self, runs: list[TorchRun], end: int) -> None:
        """Let runs that have learned from equally many samples learn until they have from ``end``."""
        n_done = runs[0].n_samples
        population = Population(
            [_replica(run) for run in runs], runs[0].criterion, device=self.device, n_samples=n_done
        )
        portion = FIRST_PORTION
        while True:
            going = {number: run for number, run in enumerate(runs) if number not in population.ended}
            for number, run in going.items():
                if run.left_in_experience == 0 and run.n_ended < len(run.info.experiences):
                    run.measure_and_end_experience(population.network(number), population.device)
            if not going or n_done == end:
                break
            until_checked = WEIGHTS_CHECKED_EVERY - n_done % WEIGHTS_CHECKED_EVERY
            n = min(portion, end - n_done, until_checked, *(run.until_measured for run in going.values()))
            start = time.monotonic()
            # a run that has ended is given samples of another one: what it makes of them does not count
            other = next(iter(going.values()))
            x, y = _samples([going.get(number, other) for number in range(len(runs))], n)
            seen = population.learn(x, y)
            seconds = time.monotonic() - start
            n_done += n
            for number, run in going.items():
                observations = seen.observations(number, run.n_ended, run.config.record_every)
                run.count_and_record(observations, seconds)
                if number in population.ended:
                    self._end_diverged(run, population, population.ended[number])
                elif run.is_to_be_measured:
                    run.measure_amid_experience(population.network(number), population.device)
            self.on_progress(sum(run.n_samples for run in self.runs), sum(run.n_in_stream for run in self.runs))
            self._save_if_due(population, runs)
            portion = max(1, min(MAX_SAMPLES, int(MAX_SECONDS * n / seconds), MAX_BYTES * n // x.nbytes))
        population.write_back()
        for run in runs:
            if run not in self.states and run.n_samples == run.n_in_stream:
                try:
                    run.check_weights()
                except Diverged as error:
                    run.directory.measure(error.measurements)
                    self._end(run, "diverged", str(error))
                else:
                    self._end(run, "finished", None)

    def _save_if_due(self, population: Population, runs: list[TorchRun]) -> None:
        """Write checkpoints if it is time to, or if the user asks to stop.

        Raises:
            Interrupted: the user does.
        """
        stop = self.should_stop()
        if stop or time.monotonic() - self.last_checkpoint > under_way.CHECKPOINT_SECONDS:
            population.write_back()
            for run in runs:
                if run not in self.states:
                    run.checkpoint()
            self.last_checkpoint = time.monotonic()
        if stop:
            raise Interrupted

    def _end_diverged(self, run: TorchRun, population: Population, error: Diverged) -> None:
        population.write_back()
        run.directory.measure(error.measurements + state_at_end(run.model, run.optimizer, error))
        self._end(run, "diverged", str(error))

    def _going(self) -> list[TorchRun]:
        return [run for run in self.runs if run not in self.states]

    def _end(self, run: TorchRun, state: str, reason: str | None) -> None:
        try:
            run.directory.finish(state, reason, run.engine)
            self.states[run] = state
        except Exception as error:
            self.states[run] = fail(run.directory, error)


def _check_side_by_side(runs: list[TorchRun]) -> None:
    shape = runs[0].info.for_learner.input_shape
    for run in runs:
        if run.config.diagnostics:
            raise ValueError("runs with diagnostics cannot be done side by side; do each by itself")
        if run.info.for_learner.batch_size > 1:
            raise ValueError("runs that learn from mini-batches cannot be done side by side")
        if run.info.for_learner.input_shape != shape:
            raise ValueError(
                f"runs with images of different shapes cannot be done side by side: {shape} and "
                f"{run.info.for_learner.input_shape}"
            )
        if any(isinstance(module, DynamicModule) for module in run.model.modules()):
            raise ValueError(
                'runs of growing networks cannot be done side by side; use engine="auto", or a network of fixed size'
            )
    check_alike([_replica(run) for run in runs])


def _replica(run: TorchRun) -> Replica:
    return run.model, cast(MetaOptimize, run.optimizer)  # which the engine checks


def _samples(runs: list[TorchRun], n: int) -> tuple[Tensor, Tensor]:
    """The next inputs [R, n, …] and labels [R, n] of runs; those of equal streams are made only once."""
    made: dict[str, tuple[Tensor, Tensor]] = {}
    for run in runs:
        if run.info.fingerprint not in made:
            first = run.within_experience
            images, labels = run.stream.train[run.n_ended].batch(slice(first, first + n))
            made[run.info.fingerprint] = torch.from_numpy(images), torch.from_numpy(labels)
    x, y = zip(*(made[run.info.fingerprint] for run in runs), strict=True)
    return torch.stack(x), torch.stack(y)
