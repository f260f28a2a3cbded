"""MetaOptimize in JAX: one jitted scan over samples, for ``benchmarks.throughput`` and for those who read both.

AdamW as base update, Adam as meta update, a step size per block, one trace; symbols as in ``optim/reference.py``.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from torch import nn

Weights = list[list[jax.Array]]  # of each block
State = dict[str, Any]
Learn = Callable[[State, jax.Array, jax.Array], tuple[State, tuple[jax.Array, jax.Array]]]

# work of a step is on one thread, as that of everything beside it; it is read when JAX first computes
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"


def adam(m: Any, v: Any, g: Any, t: Any, eps: float = 1e-8) -> tuple[Any, Any, Any]:
    """Return the new moments, and the direction m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε)."""
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return m, v, m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.999**t)) + eps)


def start(model: nn.Sequential, lr: float) -> State:
    """Begin with the weights of a PyTorch network, each of whose layers is a block."""
    layers = [layer for layer in model if any(True for _ in layer.parameters())]
    w = [[jnp.array(p.detach().numpy()) for p in layer.parameters()] for layer in layers]
    zeros, of_blocks = jax.tree.map(jnp.zeros_like, w), jnp.zeros(len(w))
    state = {"w": w, "m": zeros, "v": zeros, "h": zeros, "beta": jnp.full(len(w), jnp.log(lr))}
    return state | {"meta_m": of_blocks, "meta_v": of_blocks, "t": jnp.zeros(())}


def predict(layers: Sequence[nn.Module], w: Weights, x: jax.Array) -> jax.Array:
    """Compute a network's outputs for one sample.

    Raises:
        ValueError: a layer is none of those of PaperCNN and MLP.
    """
    blocks = iter(w)
    for layer in layers:
        match layer:
            case nn.Conv2d(padding=(1, 1), kernel_size=(3, 3)):
                kernel, bias = next(blocks)
                _, height, width = x.shape  # a product of matrices, whose gradient is faster than a convolution's
                x = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
                windows = jnp.stack([x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], 1)
                x = kernel.reshape(len(kernel), -1) @ windows.reshape(-1, height * width) + bias[:, None]
                x = x.reshape(-1, height, width)
            case nn.Linear():
                kernel, bias = next(blocks)
                x = kernel @ x + bias
            case nn.ReLU():
                x = jax.nn.relu(x)
            case nn.MaxPool2d(kernel_size=2):  # faster, forth and back, than a window that is reduced
                channels, height, width = x.shape
                x = x.reshape(channels, height // 2, 2, width // 2, 2).max((2, 4))
            case nn.Flatten():
                x = x.ravel()
            case _:
                raise ValueError(f"there is no {type(layer).__name__} in JAX here; take paper_cnn or mlp")
    return x


def learner(model: nn.Sequential, eta: float = 1e-2, gamma: float = 0.999, kappa: float = 0.01) -> Learn:
    """Make the function (state, samples, labels) → (new state, (losses, whether each prediction was right))."""

    def loss_of(w: Weights, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = predict(list(model), w, x)
        return jax.nn.logsumexp(output) - output[y], output.argmax() == y

    def step(s: State, sample: tuple[jax.Array, jax.Array]) -> tuple[State, tuple[jax.Array, jax.Array]]:
        (loss, right), g = jax.value_and_grad(loss_of, has_aux=True)(s["w"], *sample)
        t, new = s["t"] + 1, {key: [list(block) for block in s[key]] for key in "wmvh"}
        z = jnp.stack([sum(jnp.vdot(h, d) for h, d in zip(*both, strict=True)) for both in zip(s["h"], g, strict=True)])
        for b, alpha in enumerate(jnp.exp(s["beta"])):
            for i, gradient in enumerate(g[b]):
                w, h = s["w"][b][i], s["h"][b][i]
                new["m"][b][i], new["v"][b][i], direction = adam(s["m"][b][i], s["v"][b][i], gradient, t)
                delta = alpha * (direction + kappa * w)
                new["w"][b][i], new["h"][b][i] = w - delta, gamma * (1 - kappa * alpha) * h - delta
        meta_m, meta_v, change = adam(s["meta_m"], s["meta_v"], z, t)
        beta = jnp.clip(s["beta"] - eta * change, jnp.log(1e-10), 0.0)
        return new | {"beta": beta, "meta_m": meta_m, "meta_v": meta_v, "t": t}, (loss, right)

    return jax.jit(lambda state, x, y: lax.scan(step, state, (x, y)))
