"""Curves in TensorBoard: online accuracy, loss, step sizes and meta gradients while learning."""

import sys

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import torch
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin

from continual_metaopt import MLP, MetaOptimizeStrategy, online_metrics
from continual_metaopt.streams import make_stream

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/tensorboard"

torch.manual_seed(0)
benchmark = make_stream("permuted_inputs", source="digits", n_experiences=3, samples_per_experience=500, seed=0)
sizes = benchmark.info.for_learner
evaluator = EvaluationPlugin(online_metrics(every=100, window=500), loggers=[TensorboardLogger(folder)])

strategy = MetaOptimizeStrategy(model=MLP(sizes.n_outputs, sizes.input_shape), lr=1e-3, evaluator=evaluator)
strategy.train(benchmark.train_stream)
print(f"online accuracy {strategy.online_accuracy:.1%}")
print(f"to look at the curves: tensorboard --logdir {folder}")
