"""OnlineLearner: the Avalanche strategy that predicts, is scored, and only then learns, sample by sample."""

import bisect
import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast, get_args

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import torch
from avalanche.core import BasePlugin
from avalanche.models.utils import is_multi_task_module
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import Tensor, nn
from torch.optim import Optimizer

from continual_metaopt.engines import COMPILED, Engine, torch_engine
from continual_metaopt.engines.observations import MAX_SAMPLES, MAX_SECONDS, Diverged, Observations, check_finite
from continual_metaopt.learner.listening import ITERATION_CALLBACKS, PARTS_OF_ITERATION, listens_to_iterations
from continual_metaopt.learner.loading import SampleLoader, experience_number, first_batch, n_batches
from continual_metaopt.learner.metrics.online import OnlineMetric, works_without_callbacks
from continual_metaopt.optim.dynamic_parameters import follow_parameters
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.optim.protocol import switches_weights, wants_graph, weights_to_predict_with
from continual_metaopt.streams.benchmark import samples_behind
from continual_metaopt.streams.registry import unknown_name

if TYPE_CHECKING:
    from continual_metaopt.engines.compiled.engine import CompiledEngine
    from continual_metaopt.engines.compiled.fused_update import FusedUpdate
    from continual_metaopt.engines.traced.traced_gradients import TracedGradients


READ_AT_ONCE = 32  # samples
NOT_SAVED = ("recorder", "_update", "_compiled", "_traced")


class Recorder(Protocol):
    """Takes what a learner observed, after every call of its engine.

    One that has a method ``measure``, too, is given the rows (step, quantity, block or None, statistic, value) of
    diagnostics as soon as they are measured, before the observations of those steps. Steps are samples there, too.
    """

    def observe(self, observations: Observations) -> None:
        """Take observations, which are not used again; may raise to stop the learner."""
        ...


def quiet_evaluator(*metrics: OnlineMetric) -> EvaluationPlugin:
    """An evaluator without loggers, which keeps only last values; the learner scores its own predictions.

    Args:
        *metrics: those that it has nevertheless.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No loggers specified")
        return EvaluationPlugin(*metrics, collect_all=False)


class OnlineLearner(Naive):
    """Avalanche's ``Naive`` with one pass, one sample at a time and no shuffling: the stream has fixed the order.

    Each sample is first predicted and scored, then learned from; ``online_accuracy`` is the share of right predictions
    so far. No learner is told where an experience begins or ends, but for the baselines that are defined by that.

    Where a plugin, metric or logger listens to single iterations, all callbacks run in Avalanche's order; otherwise the
    loop runs without them, with the same results, but for rounding where another engine can compute then.
    ``online_metrics`` and ``diagnostics`` are asked only at the iterations at which they have values. Evaluation uses
    Avalanche's ``eval``.

    Args:
        model: the network.
        optimizer: any torch optimizer of its parameters.
        criterion: loss of (output, target).
        engine: "torch" runs network and optimizer as they are; "fused" traces the network's forward and backward pass
            into one graph, where it can be traced, for any optimizer that learns from gradients alone, and makes
            MetaOptimize's updates in one pass over memory; "compiled" does all of it in compiled code, for sequential
            networks and MetaOptimize. They give the same results up to rounding. "auto"
            takes the fastest that fits; ``strategy.engine`` says which ran and why.
        batch_size: samples that are predicted, and then learned from, at once: one update from their mean loss. Steps
            are samples all the same, each with its own prediction and loss; the last mini-batch of an experience may be
            smaller. What is recorded at multiples of ``record_every`` is that of the update which learned from that
            sample. Not with the compiled engine if it is more than 1.
        device: where network and samples are.
        plugins: Avalanche plugins.
        evaluator: Avalanche's evaluation plugin, or a function that makes it.
        eval_mb_size: batch size of evaluation.
        eval_every: as in Avalanche's strategies.
        recorder: takes what was observed, in portions of at most 1,000 samples or half a second. Between portions the
            learner may be saved with Avalanche's ``save_checkpoint``, also in the middle of an experience.
        record_every: distance in steps between recorded step sizes.
        hand_over_at: numbers of samples, in rising order, after which a portion ends in any case, so that the recorder
            sees the network as it is then; of mini-batches, with the one that reaches the number.
        told: call the optimizer's ``begin_experience()`` where an experience begins. Only for baselines that are
            defined by that knowledge, whose registered names end in "_told".

    Attributes:
        step: number of samples learned from before the update that is being made; after an experience, in all.

    Raises:
        ValueError: unknown engine, or one that does not fit network, loss or optimizer; ``batch_size`` is less than 1;
            the optimizer can't be told.
    """

    mbatch: Any
    mb_output: Any
    recorder: Recorder | None = None  # not saved in checkpoints
    _compiled: "CompiledEngine | None" = None  # likewise
    _traced: "TracedGradients | None" = None  # likewise

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Any = None,
        engine: Engine = "auto",
        batch_size: int = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: Any = quiet_evaluator,
        eval_mb_size: int = 256,
        eval_every: int = -1,
        recorder: Recorder | None = None,
        record_every: int = 50,
        hand_over_at: Sequence[int] = (),
        told: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but is {batch_size}")
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=criterion if criterion is not None else nn.CrossEntropyLoss(),
            train_mb_size=batch_size,
            train_epochs=1,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=list(plugins or []),
            evaluator=evaluator,
            eval_every=eval_every,
        )
        self.wanted_engine: Engine = engine
        self._choose_engine()
        self.optimized_param_id: dict[str, nn.Parameter] | None = None
        self.recorder = recorder
        self.record_every = record_every
        self.hand_over_at = hand_over_at
        if told and not hasattr(optimizer, "begin_experience"):
            raise ValueError(
                f"told=True needs an optimizer with begin_experience(), which {type(optimizer).__name__} lacks"
            )
        self.told = told
        self.n_samples = 0
        self.n_correct = 0
        self.step = 0
        self._within_experience = 0
        self._prediction: Any = None
        self._observations = Observations(experience=0, first_step=0)
        self._deadline = 0.0
        self._portion = MAX_SAMPLES

    @property
    def online_accuracy(self) -> float:
        """Share of samples so far that were predicted right before they were learned from; NaN before the first."""
        return self.n_correct / self.n_samples if self.n_samples else float("nan")

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        """Learn from an experience or a stream of them, in their order.

        Args:
            experiences: an Avalanche experience, stream, or iterable of experiences.
            eval_streams: streams to evaluate on while training, as in Avalanche; None for none.
            **kwargs: passed on to Avalanche, to its data loader and plugins; ``shuffle`` is False unless given.

        Returns:
            Last values of the evaluator's metrics.

        Raises:
            Diverged: a loss, a meta gradient or a weight is NaN or infinite. What came before has gone to the recorder;
                its ``measurements`` say what is known of that sample.
            ValueError: labels do not fit the network's outputs.
        """
        kwargs.setdefault("shuffle", False)
        # Avalanche would walk through an iterator of experiences to evaluate on them, and train on none
        return super().train(experiences, [] if eval_streams is None else eval_streams, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a call of train is left out, so that a checkpoint holds no data sets, and one that is taken
        # between two portions says how far into the experience it is.
        lasting = {name: value for name, value in self.__dict__.items() if name not in NOT_SAVED}
        passing = dict.fromkeys(("experience", "adapted_dataset", "mbatch", "mb_output", "_eval_streams"))
        return lasting | passing | {"dataloader": [], "loss": self._make_empty_loss()}

    def _before_training(self, **kwargs: Any) -> None:
        # the network has come to its device now, and others may have changed it or set another optimizer
        self._choose_engine()
        super()._before_training(**kwargs)

    def _before_training_exp(self, **kwargs: Any) -> None:
        if self.told and not self._within_experience and getattr(self.experience.logging(), "is_first_subexp", True):
            self.optimizer.begin_experience()
        super()._before_training_exp(**kwargs)

    def continue_from(
        self, n_samples: int, n_correct: int, within_experience: int, n_updates: int | None = None
    ) -> None:
        """Set the counters of a learner whose network and optimizer were restored from a checkpoint.

        Args:
            n_samples: samples learned from so far.
            n_correct: how many of them were predicted right.
            within_experience: how many of them belong to the experience that ``train`` is given next.
            n_updates: made so far; None if no mini-batch was smaller than the others but the last.
        """
        self.n_samples, self.n_correct, self._within_experience = n_samples, n_correct, within_experience
        n_updates = n_batches(n_samples, self.train_mb_size) if n_updates is None else n_updates
        self.clock.train_iterations = self.clock.total_iterations = n_updates

    def make_optimizer(self, **kwargs: Any) -> None:
        """Let the optimizer follow the network's parameters, keeping what it has learned.

        Args:
            **kwargs: Avalanche's wishes, of which the one to start the optimizer anew is not heeded.
        """
        parameters = dict(self.model.named_parameters())
        follow_parameters(self.optimizer, self.optimized_param_id or parameters, parameters)
        self.optimized_param_id = parameters

    def eval(self, experiences: Any, **kwargs: Any) -> Any:
        """Evaluate on experiences, as Avalanche does; a head that grows meanwhile is learned from then on.

        Args:
            experiences: an Avalanche experience or stream.
            **kwargs: passed on to Avalanche, to its data loader and plugins; ``shuffle`` is False unless given.

        Returns:
            Last values of the evaluator's metrics.
        """
        if self.optimized_param_id is None:
            self.make_optimizer()  # notes which parameters there are before the network can grow
        metrics = super().eval(experiences, **kwargs)
        self.make_optimizer()
        return metrics

    def make_train_dataloader(
        self, shuffle: bool = False, num_workers: int = 0, drop_last: bool = False, **kwargs: Any
    ) -> None:
        """Present the samples in the data set's order, or through Avalanche's loader if asked to shuffle."""
        if shuffle or num_workers:
            super().make_train_dataloader(shuffle=shuffle, num_workers=num_workers, drop_last=drop_last, **kwargs)
        else:
            self.dataloader = SampleLoader(self.adapted_dataset, self._within_experience, self.train_mb_size, drop_last)

    def training_epoch(self, **kwargs: Any) -> None:
        """Learn from one experience."""
        self._start_observations()
        obstacle = self._why_callbacks(except_for=works_without_callbacks)
        try:
            known = obstacle is None and len(self.dataloader) > 0
            self._choose_engine(obstacle, first_batch(self.dataloader) if known else None)
            self._compile()
            if self.engine["name"] == "compiled":
                self._learn_in_portions(self._learn_compiled, self._learn_watched_compiled)
            elif obstacle is None:
                differentiate, samples = self._choose_gradients(), self._samples()
                self._learn_in_portions(
                    functools.partial(self._learn_by_torch, differentiate, samples),
                    functools.partial(self._learn_watched_by_torch, differentiate, samples),
                )
            else:
                self._leave_to_autograd(obstacle)
                self._start_observations()
                super().training_epoch(**kwargs)
        except Diverged as error:
            error.measurements += torch_engine.state_at_end(self.model, self.optimizer, error)
            raise
        finally:
            self._hand_over()
            self._within_experience, self.step = 0, self.n_samples

    def _choose_engine(self, obstacle: str | None = None, sample: Sequence[Tensor] | None = None) -> None:
        """Decide how the learner's steps are executed: ``self.engine`` is name and reason, for the record.

        Args:
            obstacle: why callbacks have to run, or None.
            sample: a mini-batch, if one is known already.

        Raises:
            ValueError: unknown engine, or one that does not fit.
        """
        engine, optimizer = self.wanted_engine, self.optimizer
        if engine not in get_args(Engine):
            raise ValueError(unknown_name("engine", engine, list(get_args(Engine))))
        self._update: Callable[[], Any] = optimizer.step
        self.engine = {"name": "torch", "reason": "asked for"}
        if engine in ("auto", "compiled"):
            obstacle = obstacle or self._why_not_compiled(sample)
            self.engine = COMPILED
            if obstacle is None:
                return
            _refuse_if(engine == "compiled", "compiled", obstacle)
        if engine in ("auto", "fused"):
            from continual_metaopt.engines.compiled.fused_update import FusedUpdate, why_not_fused
            from continual_metaopt.engines.traced.traced_gradients import why_not_traced

            reason = "asked for" if engine == "fused" else f"not compiled: {obstacle}"
            self.engine = {"name": "fused", "reason": reason}
            if why_not_fused(optimizer) is None:
                self._update = FusedUpdate(cast(MetaOptimize, optimizer))
                return
            no_traced = why_not_traced(optimizer)
            if no_traced is not None:
                _refuse_if(engine == "fused", "fused", no_traced)
                self._leave_to_autograd(no_traced)

    def _why_not_compiled(self, sample: Sequence[Tensor] | None) -> str | None:
        from continual_metaopt.engines.compiled.engine import compiled_or_why_not

        if self.train_mb_size > 1:
            self._compiled = None
            return f"samples come in mini-batches of {self.train_mb_size}"
        # made anew, since plugins may have changed network and optimizer
        self._compiled, obstacle = compiled_or_why_not(self.model, self.optimizer, self._criterion, sample)
        return obstacle

    def _compile(self) -> None:
        """Compile what the engine needs before the time of learning is taken."""
        if self.engine["name"] == "compiled":
            if self._compiled is not None:  # else there are no samples
                self._compiled.compile(self.adapted_dataset)
        elif not self._updates_itself():
            cast("FusedUpdate", self._update).compile()

    def _choose_gradients(self) -> torch_engine.Differentiate:
        """What computes predictions and gradients where no callbacks run."""
        if self.engine["name"] == "fused":
            from continual_metaopt.engines.traced.traced_gradients import FEWEST_SAMPLES, NotTraceable, TracedGradients

            try:
                if len(self.adapted_dataset) < FEWEST_SAMPLES:
                    raise NotTraceable("the experience is too short for tracing")
                x, y, *_ = first_batch(SampleLoader(self.adapted_dataset, batch_size=self.train_mb_size))
                given = (self.model, self.optimizer, self._criterion, x.to(self.device), y.to(self.device))
                if self._traced is None or not self._traced.still_holds(*given):
                    self._traced = TracedGradients(*given)
            except NotTraceable as error:
                self._traced = None
                self._leave_to_autograd(str(error))
            else:
                own = "; the optimizer makes its own update" if self._updates_itself() else ""
                self.engine["reason"] += f"; gradients by a traced graph{own}"
                return self._traced
        return self._by_autograd

    def _updates_itself(self) -> bool:
        """Whether it is the optimizer's own ``step`` that makes the updates."""
        return self._update == self.optimizer.step

    def _leave_to_autograd(self, why: str) -> None:
        """Let the record of a fused engine say why there is no traced graph; without a fused update, it is none."""
        if self.engine["name"] != "fused":
            return
        if self._updates_itself():
            which = "not fused" if self.wanted_engine == "fused" else "neither compiled nor fused"
            self.engine = {"name": "torch", "reason": f"{which}: {why}"}
        elif why not in self.engine["reason"]:
            self.engine["reason"] += f"; gradients by autograd: {why}"

    def _learn_in_portions(self, learn: Callable[[int], bool], learn_watched: Callable[[], None]) -> None:
        """Learn until there is nothing left to learn from, and hand over what was observed after each portion.

        Args:
            learn: learns from at most so many samples; returns whether there may be more.
            learn_watched: learns from one mini-batch, after letting metrics look at it and at its gradients.
        """
        self.mbatch = None
        n_left, more = len(self.dataloader), True
        self._start_observations()
        while more and n_left > 0:
            try:
                more = self._learn_portion(learn, learn_watched)
            finally:
                n = n_batches(len(self._observations), self.train_mb_size)
                n_left -= n
                self._advance_clock(n)
                self._hand_over()

    def _learn_portion(self, learn: Callable[[int], bool], learn_watched: Callable[[], None]) -> bool:
        at_most, self.step = self._portion, self.n_samples
        metrics = self._metrics_without_callbacks()
        if not metrics:
            return learn(at_most)
        more = True
        self.evaluator.before_training_iteration(self)
        try:
            if any(metric.needs_gradients(self) for metric in metrics):
                learn_watched()
            else:
                self.evaluator.before_update(self)
                free = min(metric.free_iterations(self) for metric in metrics)
                more = learn(min(at_most, free * self.train_mb_size))
        finally:
            for metric in metrics:
                metric.take_in(self._observations)
        self.evaluator.after_update(self)
        self.mbatch = self.mb_output = None
        return more

    def _metrics_without_callbacks(self) -> list[OnlineMetric]:
        return [metric for metric in self.evaluator.metrics if works_without_callbacks(metric)]

    def _take_inputs(self) -> Callable[[Tensor], None] | None:
        """Gives inputs that are learned from to the metrics that want them; None if there are none."""
        takers = [metric.take_inputs for metric in self._metrics_without_callbacks() if hasattr(metric, "take_inputs")]

        def take_inputs(inputs: Tensor) -> None:
            for take in takers:
                take(inputs)

        return take_inputs if takers else None

    def _learn_by_torch(
        self, differentiate: torch_engine.Differentiate, samples: Iterator[tuple[Tensor, Tensor]], at_most: int
    ) -> bool:
        return torch_engine.learn(
            self.model,
            self.optimizer,
            self._criterion,
            samples,
            self._observations,
            self.record_every,
            self._update,
            at_most,
            differentiate,
        )

    def _learn_watched_by_torch(
        self, differentiate: torch_engine.Differentiate, samples: Iterator[tuple[Tensor, Tensor]]
    ) -> None:
        x, y = next(samples)
        self._predict_watched(differentiate, x, y)
        torch_engine.observe(
            self._observations,
            self.optimizer,
            self._criterion,
            self.mb_output,
            y,
            self.loss,
            self.record_every,
            self._update,
            len(y),
        )

    def _learn_compiled(self, at_most: int) -> bool:
        return cast("CompiledEngine", self._compiled).learn(
            self.adapted_dataset,
            self._within_experience,
            self._observations,
            self.record_every,
            at_most,
            self._take_inputs(),
        )

    def _learn_watched_compiled(self) -> None:
        x, y, *_ = first_batch(SampleLoader(self.adapted_dataset, self._within_experience))
        self._predict_watched(self._by_autograd, x, y)
        self.model.zero_grad()
        self._learn_compiled(1)

    def _predict_watched(self, differentiate: torch_engine.Differentiate, x: Tensor, y: Tensor) -> None:
        """Predict a mini-batch and compute its gradients, for metrics to look at before the update."""
        self.mbatch = [x, y, torch.zeros(len(y), dtype=torch.int64, device=self.device)]  # as if of task 0
        self.mb_output, self.loss = differentiate(x, y)
        check_finite(self.loss.item(), self._observations.next_step)
        if wants_graph(self.optimizer):  # which is not given gradients, but computes them itself
            self.backward()
        with weights_to_predict_with(self.optimizer):
            self.evaluator.before_update(self)

    def _by_autograd(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch_engine.by_autograd(self.model, self.optimizer, self._criterion, x, y)

    def _why_callbacks(self, except_for: Callable[[Any], bool] = lambda metric: False) -> str | None:
        """Why Avalanche's callbacks have to run at each sample, apart from metrics of a kind; None if they need not."""
        for name in (*PARTS_OF_ITERATION, *(f"_{callback}" for callback in ITERATION_CALLBACKS)):
            if getattr(getattr(self, name), "__func__", None) is not getattr(OnlineLearner, name):
                return f"{type(self).__name__} has its own {name}()"
        if not isinstance(self.dataloader, SampleLoader):
            return "samples come through Avalanche's data loader"
        if is_multi_task_module(self.model):
            return "the network wants task labels"
        for plugin in self.plugins:
            if listens_to_iterations(plugin, except_for):
                return f"{type(plugin).__name__} listens to single iterations"
        return None

    def _samples(self) -> Iterator[tuple[Tensor, Tensor]]:
        samples, take_inputs = self._read_samples(), self._take_inputs()
        return samples if take_inputs is None else _seen(samples, take_inputs)

    def _read_samples(self) -> Iterator[tuple[Tensor, Tensor]]:
        samples = samples_behind(self.dataloader.dataset)
        if samples is None:
            for x, y, *_ in self.dataloader:
                yield x.to(self.device), y.to(self.device)
            return
        # these samples are the same whenever they are read, and it takes less time to read some at once
        size = self.train_mb_size
        at_once = size * n_batches(READ_AT_ONCE, size)
        for start in range(self.dataloader.first, self.dataloader.end, at_once):
            batch = samples.batch(slice(start, min(start + at_once, self.dataloader.end)))
            inputs, targets = (torch.from_numpy(part).to(self.device).split(size) for part in batch)
            for x, y in zip(inputs, targets, strict=True):
                yield x.clone(), y  # in memory of its own, as if it had been read alone

    def _before_training_iteration(self, **kwargs: Any) -> None:
        self.step = self.n_samples + len(self._observations)
        super()._before_training_iteration(**kwargs)

    def criterion(self) -> Tensor:
        """Loss of the current mini-batch."""
        return torch_engine.loss_of(self._criterion, self.mb_output, self.mb_y)

    def _before_backward(self, **kwargs: Any) -> None:
        check_finite(self.loss.item(), self._observations.next_step)
        super()._before_backward(**kwargs)

    def forward(self) -> Tensor:
        """Predict, while learning with the weights that an optimizer has for that if it has any."""
        if not (self.is_training and switches_weights(self.optimizer)):
            return cast(Tensor, super().forward())
        self.optimizer.eval()
        with torch.no_grad():
            return cast(Tensor, super().forward())

    def backward(self) -> None:
        """Compute the gradients, at the weights that an optimizer has for that if it has any.

        The graph is kept for an optimizer that differentiates it again.

        Raises:
            ValueError: a plugin has added to the loss of weights that are for predictions only.
        """
        if switches_weights(self.optimizer):
            if self.loss.requires_grad:
                raise ValueError(
                    f"a plugin adds to the loss, but {type(self.optimizer).__name__} takes gradients at other weights "
                    "than it predicts with; leave the plugin out, or take another optimizer"
                )
            self.optimizer.train()
            torch_engine.loss_of(self._criterion, super().forward(), self.mb_y).backward()
            return
        self.loss.backward(retain_graph=wants_graph(self.optimizer))

    def _after_backward(self, **kwargs: Any) -> None:
        # from here on a plugin may evaluate, and Avalanche forgets the current batch when it does
        self._prediction = self.mb_output, self.mb_y, self.loss
        with weights_to_predict_with(self.optimizer):
            super()._after_backward(**kwargs)

    def _before_update(self, **kwargs: Any) -> None:
        with weights_to_predict_with(self.optimizer):
            super()._before_update(**kwargs)

    def optimizer_step(self) -> None:
        """Make the update, and note what was seen before it."""
        (output, target, loss), self._prediction = self._prediction, None
        left = len(self.adapted_dataset) - self._within_experience - len(self._observations)
        torch_engine.observe(
            self._observations,
            self.optimizer,
            self._criterion,
            output,
            target,
            loss,
            self.record_every,
            self._update,
            max(1, min(self.train_mb_size, left, len(target))),
        )

    def _after_training_iteration(self, **kwargs: Any) -> None:
        super()._after_training_iteration(**kwargs)
        n = len(self._observations)
        full = n >= self._portion or n + self.train_mb_size > MAX_SAMPLES
        if full or time.monotonic() >= self._deadline:
            self._hand_over()

    def _advance_clock(self, n: int) -> None:
        """What Avalanche's clock would have counted at the callbacks that were left out."""
        self.clock.train_iterations += n
        self.clock.train_exp_iterations += n
        self.clock.train_epoch_iterations += n
        self.clock.total_iterations += n

    def _start_observations(self) -> None:
        self._observations = Observations(experience_number(self.experience), self.n_samples)
        self._deadline = time.monotonic() + MAX_SECONDS
        self._portion = self._until_hand_over()

    def _until_hand_over(self) -> int:
        """How many samples a portion that begins now may have."""
        following = bisect.bisect_right(self.hand_over_at, self.n_samples)
        ends = self.hand_over_at[following : following + 1]
        return min(MAX_SAMPLES, *(end - self.n_samples for end in ends)) if ends else MAX_SAMPLES

    def _hand_over(self) -> None:
        done = self._observations
        self.n_samples += len(done)
        self.n_correct += sum(map(bool, done.correct))
        self._within_experience += len(done)
        self._start_observations()
        if self.recorder is not None and len(done):
            self.recorder.observe(done)
            self._start_observations()  # so that recording does not count as learning


def _seen(
    samples: Iterator[tuple[Tensor, Tensor]], take_inputs: Callable[[Tensor], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in samples:
        take_inputs(x)
        yield x, y


def _refuse_if(refused: bool, engine: str, obstacle: str) -> None:
    if refused:
        raise ValueError(f'engine="{engine}" is not possible: {obstacle}; use engine="auto"')
