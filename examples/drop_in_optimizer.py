"""An Avalanche script with one line changed: MetaOptimize in place of torch.optim.AdamW."""

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import torch
from avalanche.training import Naive

from continual_metaopt import MLP, KeepOptimizerState, MetaOptimize, blocks
from continual_metaopt.streams import make_stream

torch.manual_seed(0)
benchmark = make_stream("class_split", source="digits", classes_per_experience=2, seed=0)
model = MLP(benchmark.info.for_learner.n_outputs, benchmark.info.for_learner.input_shape)

# before: optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
optimizer = MetaOptimize(blocks(model, "blockwise"), lr=1e-3, gamma="auto", trace="dutch")

strategy = Naive(
    model=model, optimizer=optimizer, train_mb_size=8, train_epochs=2, eval_mb_size=64, plugins=[KeepOptimizerState()]
)
for experience in benchmark.train_stream:
    strategy.train(experience)
    print({block: f"{step_size:.2e}" for block, step_size in optimizer.step_size_report().items()})
strategy.eval(benchmark.test_stream)
