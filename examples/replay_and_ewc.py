"""MetaOptimize together with Avalanche's continual-learning methods: a replay buffer and EWC's penalty."""

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import torch
from avalanche.training.plugins import EWCPlugin, ReplayPlugin

from continual_metaopt import MLP, MetaOptimizeStrategy
from continual_metaopt.streams import make_stream

benchmark = make_stream("class_split", source="digits", classes_per_experience=2, labels="global", seed=0)
sizes = benchmark.info.for_learner

for name, plugins in {
    "neither": [],
    "replay": [ReplayPlugin(mem_size=100, batch_size=1, batch_size_mem=4)],
    "EWC": [EWCPlugin(ewc_lambda=1.0)],
}.items():
    torch.manual_seed(0)
    model = MLP(sizes.n_outputs, sizes.input_shape)
    strategy = MetaOptimizeStrategy(model=model, step_sizes="blockwise", lr=1e-3, plugins=plugins)
    strategy.train(benchmark.train_stream)
    with torch.no_grad():
        tests = [experience.dataset for experience in benchmark.test_stream]
        right = sum(int(model(x[None]).argmax() == y) for test in tests for x, y, _ in test)
    total = sum(map(len, tests))
    print(f"{name:8} online accuracy {strategy.online_accuracy:.1%}, of all classes afterwards {right / total:.1%}")
