"""The scan in JAX learns as this package's MetaOptimize does."""

from typing import Any

import pytest
import torch

from continual_metaopt import MetaOptimize, blocks
from continual_metaopt.networks.mlp import MLP
from continual_metaopt.networks.paper_cnn import PaperCNN

jax: Any = pytest.importorskip("jax")

from benchmarks import jax_scan  # noqa: E402


@pytest.mark.parametrize("network", [PaperCNN, MLP])
@pytest.mark.parametrize(
    ("dtype", "lr", "eta", "kappa", "rel"),
    [
        (torch.float32, 1e-4, 0.01, 0.01, 1e-3),
        (torch.float64, 1e-3, 0.1, 0.1, 1e-8),  # so large steps that rounding in float32 would grow
    ],
)
def test_losses_and_step_sizes_are_those_of_metaoptimize(
    network: Any, dtype: torch.dtype, lr: float, eta: float, kappa: float, rel: float
) -> None:
    torch.manual_seed(0)
    model = network(input_shape=(3, 8, 8)).to(dtype)
    x, y = torch.randn(20, 3, 8, 8, dtype=dtype), torch.arange(20) % 3
    with jax.enable_x64(dtype is torch.float64):
        state, learn = jax_scan.start(model, lr), jax_scan.learner(model, eta=eta, gamma=0.999, kappa=kappa)
        state, (losses, right) = learn(state, x.numpy(), y.numpy())
        step_sizes = jax.numpy.exp(state["beta"]).tolist()

    optimizer = MetaOptimize(blocks(model), lr, meta_lr=eta, gamma=0.999, weight_decay=kappa)
    expected, hits = [], []
    for image, label in zip(x, y, strict=True):
        output = model(image[None])
        loss = torch.nn.functional.cross_entropy(output, label[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
        hits.append(bool(output.argmax() == label))
    assert losses.tolist() == pytest.approx(expected, rel=rel)
    assert right.tolist() == hits
    assert step_sizes == pytest.approx([group["lr"] for group in optimizer.param_groups], rel=rel)
    assert max(abs(step_size / lr - 1) for step_size in step_sizes) > eta  # they have been learned


def test_other_layers_are_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())
    with pytest.raises(ValueError, match="there is no Tanh in JAX here"):
        jax_scan.learner(model)(jax_scan.start(model, 0.1), torch.ones(1, 2).numpy(), torch.zeros(1, dtype=int).numpy())
