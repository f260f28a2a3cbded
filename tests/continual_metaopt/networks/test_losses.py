"""The losses of tasks."""

import pytest
import torch
from torch import nn

from continual_metaopt.networks.losses import HalfSquaredError, criterion_of
from tests.continual_metaopt.conftest import exactly


def test_half_the_squared_error_by_hand() -> None:
    output = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    loss = HalfSquaredError()(output, torch.tensor([[0.0, 4.0], [0.0, 0.0]]))
    assert loss.item() == (1 + 4) / 2 / 2
    loss.backward()
    assert output.grad is not None
    assert output.grad.tolist() == [[0.5, -1.0], [0.0, 0.0]]


def test_shapes_that_torch_would_broadcast_are_refused() -> None:
    message = "the network's output has shape (1, 3), the target (1, 1)"
    with pytest.raises(ValueError, match=exactly(message)):
        HalfSquaredError()(torch.zeros(1, 3), torch.zeros(1, 1))


def test_each_task_has_its_loss() -> None:
    assert isinstance(criterion_of("classification"), nn.CrossEntropyLoss)
    assert isinstance(criterion_of("regression"), HalfSquaredError)
    with pytest.raises(
        ValueError,
        match=exactly("unknown task 'regresion'. Did you mean 'regression'? Known: classification, regression"),
    ):
        criterion_of("regresion")
