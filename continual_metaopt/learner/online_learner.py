"""OnlineLearner: the Avalanche strategy that predicts, is scored, and only then learns, sample by sample.

A sample's way: ``training_epoch`` chooses an engine, ``_learn_portion`` lets it predict, score and learn for a while,
what was seen is in ``Observations``, and ``_hand_over`` gives these to the recorder.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import torch
from avalanche.core import BasePlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import Tensor, nn
from torch.optim import Optimizer

from continual_metaopt.engines import Engine, torch_engine
from continual_metaopt.engines.observations import MAX_SAMPLES, MAX_SECONDS, Diverged, Observations, check_finite
from continual_metaopt.engines.torch_engine import Differentiate
from continual_metaopt.learner.choosing import Execution, Learning, choose, choose_gradients
from continual_metaopt.learner.history import History
from continual_metaopt.learner.listening import why_callbacks
from continual_metaopt.learner.loading import SampleLoader, experience_number, first_batch, n_batches, read_samples
from continual_metaopt.learner.metrics.evaluation import printing_evaluator
from continual_metaopt.learner.metrics.online import OnlineMetric, works_without_callbacks
from continual_metaopt.learner.portions import CompiledPortions, TorchPortions
from continual_metaopt.optim.dynamic_parameters import follow_parameters
from continual_metaopt.optim.protocol import step_sizes_of, switches_weights, wants_graph, weights_to_predict_with

if TYPE_CHECKING:
    import pandas as pd

NOT_SAVED = ("recorder", "_execution", "_gradients")


class Recorder(Protocol):
    """Takes what a learner observed, after every call of its engine.

    One that has a method ``measure``, too, is given the rows (step, quantity, block or None, statistic, value) of
    diagnostics as soon as they are measured, before the observations of those steps. Steps are samples there, too.
    """

    def observe(self, observations: Observations) -> None:
        """Take observations, which are not used again; may raise to stop the learner."""
        ...


def quiet_evaluator(*metrics: OnlineMetric) -> EvaluationPlugin:
    """Make an evaluator without loggers that keeps only last values; the learner itself scores its predictions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No loggers specified")
        return EvaluationPlugin(*metrics, collect_all=False)


class OnlineLearner(Naive):
    """Learns from each sample of a stream once: predicts, is scored, and only then learns from it.

    It is Avalanche's ``Naive`` with one pass, one sample at a time and no shuffling, since the stream has fixed the
    order. ``online_accuracy`` is the share of right predictions so far. The learner is never told where an experience
    begins or ends, except the baselines that are defined by that knowledge.

    If a plugin, metric or logger listens to single iterations, all callbacks run in Avalanche's order. Otherwise the
    loop runs without them. Results are the same, apart from rounding where a faster engine can then run.
    ``online_metrics`` and ``diagnostics`` are asked only at the iterations at which they have values. Evaluation uses
    Avalanche's ``eval``.

    Args:
        model: the network.
        optimizer: any torch optimizer of its parameters.
        criterion: loss of (output, target); cross-entropy unless given.
        engine: how steps are executed; results are the same up to rounding. "torch" runs network and optimizer as they
            are. "fused" computes gradients by compiled code or by one traced graph if it can, for any optimizer that
            learns from gradients alone, and makes MetaOptimize's updates in one pass over memory. "compiled" does all
            in compiled code, for sequential networks and MetaOptimize. "auto" takes the fastest that fits;
            ``strategy.engine`` says which one ran and why.
        batch_size: samples that are predicted, and then learned from, at once: one update from their mean loss. Steps
            still count samples, each with its own prediction and loss. The last mini-batch of an experience may be
            smaller. Values recorded at a step are those of the update that learned from that sample.
        device: where network and samples are.
        plugins: Avalanche plugins.
        evaluator: Avalanche's evaluation plugin, or a function that makes it; by default, ``eval`` prints and returns
            accuracy and loss of each experience and of the stream.
        eval_mb_size: batch size of evaluation.
        eval_every: as in Avalanche's strategies.
        recorder: takes what was observed, instead of ``history``, in portions of at most 1,000 samples or half a
            second. Between portions the learner may be saved with Avalanche's ``save_checkpoint``, also in the middle
            of an experience.
        record_every: distance in steps between recorded step sizes.
        hand_over_at: sorted sample counts at which a portion must end, so that the recorder sees the network exactly
            then (with mini-batches: after the batch that reaches the count).
        told: call the optimizer's ``begin_experience()`` where an experience begins. Only for baselines that are
            defined by that knowledge, whose registered names end in "_told".

    Attributes:
        engine: name of the engine, and the reason why no faster one runs.
        step: number of samples learned from before the current update; after an experience, in total.

    Raises:
        ValueError: unknown engine, or one that does not fit network, loss or optimizer; ``batch_size`` is less than 1;
            the optimizer can't be told.

    Example:
        >>> from continual_metaopt import OnlineLearner
        >>> from continual_metaopt.networks.linear import LinearModel
        >>> from continual_metaopt.streams import make_stream
        >>> model = LinearModel(n_outputs=10, input_shape=(1, 8, 8))
        >>> learner = OnlineLearner(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), engine="torch")
        >>> stream = make_stream("permuted_inputs", n_experiences=2, samples_per_experience=100).train_stream
        >>> _ = learner.train(stream)
        >>> learner.online_accuracy
        0.495
    """

    mbatch: Any
    mb_output: Any
    # not saved in checkpoints:
    recorder: Recorder | None = None
    _gradients: Differentiate | None = None
    _execution: Execution

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
        evaluator: Any = printing_evaluator,
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
        self._history = History(record_every) if recorder is None else None
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
        self._at_most = MAX_SAMPLES

    @property
    def online_accuracy(self) -> float:
        """Share of samples so far that were predicted right before they were learned from; NaN before the first."""
        return self.n_correct / self.n_samples if self.n_samples else float("nan")

    @property
    def history(self) -> "pd.DataFrame":
        """What happened so far: a row for every ``record_every`` samples, and one for the last sample.

        Columns: step, the number of samples learned from before; experience, its number; online_accuracy, the share of
        right predictions among the samples before; accuracy and loss, the means over the samples since the row before;
        and step_size/BLOCK, the step size of each block in the update at that step. A regression has no accuracies.

        Raises:
            RuntimeError: a recorder was given, which takes what is observed.
        """
        if self._history is None:
            raise RuntimeError("no history is kept, because the learner was given a recorder, which has it")
        return self._history.frame(step_sizes_of(self.optimizer))

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
            n_updates: updates made so far; by default as many as full mini-batches make, and one for the rest.
        """
        self.n_samples, self.n_correct, self._within_experience = n_samples, n_correct, within_experience
        n_updates = n_batches(n_samples, self.train_mb_size) if n_updates is None else n_updates
        self.clock.train_iterations = self.clock.total_iterations = n_updates

    def make_optimizer(self, **kwargs: Any) -> None:
        """Let the optimizer follow the network's parameters, keeping what it has learned, whatever Avalanche asks."""
        parameters = dict(self.model.named_parameters())
        follow_parameters(self.optimizer, self.optimized_param_id or parameters, parameters)
        self.optimized_param_id = parameters

    def eval(self, experiences: Any, **kwargs: Any) -> Any:
        """Evaluate on experiences, as Avalanche does; a head that grows meanwhile is learned from then on.

        Takes Avalanche's arguments, and returns last values of the evaluator's metrics by name, such as
        "Top1_Acc_Stream/eval_phase/test_stream/Task000".
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
        """Learn from one experience: in portions, by the engine that fits, or through Avalanche's callbacks."""
        self._start_observations()
        obstacle = why_callbacks(self, OnlineLearner, except_for=works_without_callbacks)
        try:
            known = obstacle is None and len(self.dataloader) > 0
            self._choose_engine(obstacle, first_batch(self.dataloader) if known else None)
            self._execution.compile(self.adapted_dataset)
            if obstacle is None:
                self._learn_in_portions(self._choose_portions())
            else:
                self._execution.leave_to_autograd(obstacle)
                self._start_observations()
                super().training_epoch(**kwargs)
        except Diverged as error:
            error.measurements += torch_engine.state_at_end(self.model, self.optimizer, error)
            raise
        finally:
            self._hand_over()
            self._within_experience, self.step = 0, self.n_samples

    @property
    def _learning(self) -> Learning:
        return self.model, self.optimizer, self._criterion

    def _choose_engine(self, obstacle: str | None = None, sample: Sequence[Tensor] | None = None) -> None:
        # made anew each time, since plugins may have changed network and optimizer
        self._execution = choose(self.wanted_engine, self._learning, self.train_mb_size, obstacle, sample)
        self.engine = self._execution.record

    def _choose_portions(self) -> TorchPortions | CompiledPortions:
        """What learns from the experience in portions."""
        execution, dataset = self._execution, self.adapted_dataset
        if execution.compiled is not None:
            return CompiledPortions(
                self._learning,
                execution.compiled,
                dataset,
                self._within_experience,
                self.dataloader.end,
                self.record_every,
                self._take_inputs(),
            )
        self._gradients = choose_gradients(
            execution, self._learning, dataset, self.train_mb_size, self.device, self._gradients
        )
        samples = read_samples(self.dataloader, self.device, self._take_inputs())
        return TorchPortions(self._learning, execution.update, self._gradients, samples, self.record_every)

    def _learn_in_portions(self, portions: TorchPortions | CompiledPortions) -> None:
        """Learn until there is nothing left to learn from, and hand over what was observed after each portion."""
        self.mbatch = None
        n_left, more = len(self.dataloader), True
        self._start_observations()
        while more and n_left > 0:
            try:
                more = self._learn_portion(portions)
            finally:
                n = n_batches(len(self._observations), self.train_mb_size)
                n_left -= n
                self._advance_clock(n)
                self._hand_over()

    def _learn_portion(self, portions: TorchPortions | CompiledPortions) -> bool:
        at_most, self.step = self._at_most, self.n_samples
        metrics = self._metrics_without_callbacks()
        if not metrics:
            return portions.learn(self._observations, at_most)
        more = True
        self.evaluator.before_training_iteration(self)
        try:
            if any(metric.needs_gradients(self) for metric in metrics):
                portions.learn_watched(self._observations, self._watch)
            else:
                self.evaluator.before_update(self)
                free = min(metric.free_iterations(self) for metric in metrics)
                more = portions.learn(self._observations, min(at_most, free * self.train_mb_size))
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

    def _watch(self, differentiate: Differentiate, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Predict a mini-batch and compute its gradients, and let metrics look at them before the update."""
        self.mbatch = [x, y, torch.zeros(len(y), dtype=torch.int64, device=self.device)]  # as if of task 0
        self.mb_output, self.loss = differentiate(x, y)
        check_finite(self.loss.item(), self._observations.next_step)
        if wants_graph(self.optimizer):  # which is not given gradients, but computes them itself
            self.backward()
        with weights_to_predict_with(self.optimizer):
            self.evaluator.before_update(self)
        return self.mb_output, self.loss

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
            self._execution.update,
            max(1, min(self.train_mb_size, left, len(target))),
        )

    def _after_training_iteration(self, **kwargs: Any) -> None:
        super()._after_training_iteration(**kwargs)
        n = len(self._observations)
        full = n >= self._at_most or n + self.train_mb_size > MAX_SAMPLES
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
        self._at_most = self._until_hand_over()

    def _until_hand_over(self) -> int:
        """How many samples a portion that begins now may have."""
        return min([MAX_SAMPLES, *(end - self.n_samples for end in self.hand_over_at if end > self.n_samples)])

    def _hand_over(self) -> None:
        done = self._observations
        self.n_samples += len(done)
        self.n_correct += sum(map(bool, done.correct))
        self._within_experience += len(done)
        self._start_observations()
        recorder = self.recorder if self.recorder is not None else self._history
        if recorder is not None and len(done):
            recorder.observe(done)
            self._start_observations()  # so that recording does not count as learning
