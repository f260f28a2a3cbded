"""``eval`` of a learner returns and prints accuracy and loss, as Avalanche names them."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from continual_metaopt import MetaOptimizeStrategy, OnlineLearner
from continual_metaopt.networks.linear import LinearModel
from continual_metaopt.networks.losses import HalfSquaredError
from continual_metaopt.streams import make_stream
from continual_metaopt.streams.benchmark import StreamBenchmark
from tests.continual_metaopt.conftest import small_network

STREAM = "eval_phase/test_stream/Task000"


def test_eval_returns_and_prints_accuracy(benchmark: StreamBenchmark, capsys: pytest.CaptureFixture[str]) -> None:
    learner = MetaOptimizeStrategy(model=small_network(), lr=1e-3)
    learner.train(benchmark.train_stream)
    assert capsys.readouterr().out == ""
    assert learner.engine["name"] == "compiled"
    found = learner.eval(benchmark.test_stream)
    assert list(found) == [
        *(f"{name}_Exp/{STREAM}/Exp00{k}" for k in range(3) for name in ("Top1_Acc", "Loss")),
        *(f"{name}_Stream/{STREAM}" for name in ("Top1_Acc", "Loss")),
    ]
    rights = []
    for k, experience in enumerate(benchmark.test_stream):
        x, y, _ = (torch.stack(list(map(torch.as_tensor, part))) for part in zip(*experience.dataset, strict=True))
        output = learner.model(x)
        rights.append((output.argmax(dim=1) == y).numpy())
        loss = torch.nn.functional.cross_entropy(output, y).item()
        assert found[f"Top1_Acc_Exp/{STREAM}/Exp00{k}"] == pytest.approx(rights[-1].mean())
        assert found[f"Loss_Exp/{STREAM}/Exp00{k}"] == pytest.approx(loss, rel=1e-5)
    assert found[f"Top1_Acc_Stream/{STREAM}"] == pytest.approx(np.concatenate(rights).mean())
    assert capsys.readouterr().out == "".join(f"{name} = {value:.4f}\n" for name, value in found.items())


def regression(targets: Any) -> StreamBenchmark:
    x = np.arange(20.0).reshape(10, 2) / 20
    return make_stream("array_stream", source=(x, targets, x[:4], targets[:4]))


def test_a_regression_has_losses_alone(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = regression(np.ones(10))
    model = LinearModel(n_outputs=1, input_shape=(2,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    learner = OnlineLearner(model=model, optimizer=optimizer, criterion=HalfSquaredError(), engine="torch")
    learner.train(benchmark.train_stream)
    assert list(learner.eval(benchmark.test_stream)) == [f"Loss_Exp/{STREAM}/Exp000", f"Loss_Stream/{STREAM}"]
    assert re.fullmatch(r"Loss_Exp/.*\nLoss_Stream/.* = \d\.\d{4}\n", capsys.readouterr().out)
