"""The shortest way: a strategy that brings its own optimizer and learns online, one sample at a time."""

import torch

from continual_metaopt import MLP, MetaOptimizeStrategy
from continual_metaopt.streams import make_stream

torch.manual_seed(0)
benchmark = make_stream("permuted_inputs", source="digits", n_experiences=3, seed=0)
sizes = benchmark.info.for_learner

strategy = MetaOptimizeStrategy(model=MLP(sizes.n_outputs, sizes.input_shape), step_sizes="blockwise", lr=1e-3)
strategy.train(benchmark.train_stream)
print(f"online accuracy {strategy.online_accuracy:.1%}")
print({block: f"{step_size:.2e}" for block, step_size in strategy.optimizer.step_size_report().items()})
