"""The scan in JAX learns as this package's MetaOptimize does."""

import pytest
import torch

from continual_metaopt import MetaOptimize, blocks
from continual_metaopt.networks.mlp import MLP
from continual_metaopt.networks.paper_cnn import PaperCNN

pytest.importorskip("jax")

from benchmarks import jax_scan


@pytest.mark.parametrize(
    "model", [PaperCNN(input_shape=(3, 8, 8)), MLP(input_shape=(1, 8, 8), hidden=(16,))], ids=["paper_cnn", "mlp"]
)
def test_losses_and_step_sizes_are_those_of_metaoptimize(model: torch.nn.Sequential) -> None:
    shape = (3, 8, 8) if isinstance(model[0], torch.nn.Conv2d) else (1, 8, 8)
    x, y = torch.randn(20, *shape, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3
    # large steps, so that losses and step sizes change much within few steps
    settings = {"gamma": 0.999, "meta_lr": 0.1, "weight_decay": 0.1}
    state, learn = jax_scan.start(model, 1e-3), jax_scan.learner(model, eta=0.1, gamma=0.999, kappa=0.1)
    state, (losses, right) = learn(state, x.numpy(), y.numpy())

    optimizer = MetaOptimize(blocks(model), 1e-3, **settings)  # type: ignore[arg-type]
    expected, hits = [], []
    for image, label in zip(x, y, strict=True):
        output = model(image[None])
        loss = torch.nn.functional.cross_entropy(output, label[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
        hits.append(bool(output.argmax() == label))
    assert losses.tolist() == pytest.approx(expected, rel=1e-3)
    assert right.tolist() == hits
    step_sizes = [group["lr"] for group in optimizer.param_groups]
    assert abs(step_sizes[0] / 1e-3 - 1) > 0.1
    assert jax_scan.jnp.exp(state["beta"]).tolist() == pytest.approx(step_sizes, rel=1e-3)


def test_other_layers_are_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())
    with pytest.raises(ValueError, match="there is no Tanh in JAX here"):
        jax_scan.learner(model)(jax_scan.start(model, 0.1), torch.ones(1, 2).numpy(), torch.zeros(1, dtype=int).numpy())
