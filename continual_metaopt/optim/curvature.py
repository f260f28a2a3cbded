"""Curvature of a loss, as exact traces need it: what the Hessian, or what stands in for it, does to columns.

Lists run over the parameters. A *column* is a direction in the space of all weights; a list of tensors of shape
[columns, *parameter.shape] holds several. All functions differentiate graphs that exist already:

    loss, output = closure()                                   # no backward()
    gradients = torch.autograd.grad(loss, params, create_graph=True)
    curvature = make_curvature("exact", params, gradients, loss)

A gradient that has no graph is taken to be constant: its rows of the Hessian are 0. (A gradient of a loss that is
linear in the weights has none, so a forgotten ``create_graph=True`` can't be told from a linear loss here.)

Stand-ins for the Hessian:

- ``"gauss_newton"``: the Gauss–Newton matrix Jᵀ L J (J: Jacobian of the network's output, L: Hessian of the loss with
  respect to the output), positive semidefinite for the usual losses (Schraudolph, Neural Computation 14, 2002).
- ``"diagonal"``: the diagonal of the Gauss–Newton matrix, exactly, by one backward pass per output; for a linear model
  with squared error it is the diagonal of the Hessian, which IDBD (Sutton 1992) uses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from continual_metaopt.optim.base import require_known

CurvatureKind = Literal["exact", "gauss_newton", "diagonal"]
KINDS: tuple[CurvatureKind, ...] = get_args(CurvatureKind)

Columns = list[Tensor]

COLUMNS_AT_ONCE = 64  # each holds its own copy of what a backward pass needs


@dataclass(frozen=True)
class Curvature:
    """The Hessian of a loss, or what stands in for it.

    Args:
        products: maps columns to their products with the matrix, both [columns, *shape]; or, if ``is_diagonal``,
            columns to the diagonal, [1, *shape], whatever the columns are.
        is_diagonal: the matrix is a diagonal one.
        product_tangents: for columns X and tangents Q of each of them, [columns, columns, *shape] with the tangent's
            direction first, the tangent ∇³f[X_c, X_b] + ∇²f Q_cb of the product ∇²f X_b when the weights move along
            X_c and X_b itself along Q_cb; None where third derivatives are not available.
    """

    products: Callable[[Columns], Columns]
    is_diagonal: bool = False
    product_tangents: Callable[[Columns, Columns], Columns] | None = None


def make_curvature(
    kind: CurvatureKind,
    params: Sequence[Tensor],
    gradients: Sequence[Tensor],
    loss: Tensor,
    output: Tensor | None = None,
) -> Curvature:
    """Make the curvature of a loss by name.

    Args:
        kind: "exact", "gauss_newton" or "diagonal".
        params: the parameters that have a gradient.
        gradients: of the loss, taken with ``create_graph=True``.
        loss: scalar, with its graph.
        output: the network's output that the loss was computed from, if the closure returned it.

    Raises:
        ValueError: the kind is unknown, or needs the output and there is none.
    """
    require_known("curvature", kind, CurvatureKind)
    if kind == "exact":
        return hessian(gradients, params)
    if output is None:
        raise ValueError(f'curvature="{kind}" needs the network\'s output: let the closure return (loss, output)')
    if kind == "gauss_newton":
        return gauss_newton(loss, output, params)
    return diagonal(gauss_newton_diagonal(loss, output, params))


def hessian(gradients: Sequence[Tensor], params: Sequence[Tensor]) -> Curvature:
    """Make the Hessian ∇²f itself: one backward pass through the gradients per column.

    Args:
        gradients: of the loss, taken with ``create_graph=True``.
        params: what they are gradients of.
    """

    def product_tangents(columns: Columns, tangents: Columns) -> Columns:
        per_column = []
        for b in range(len(columns[0])):
            outputs = [g for g in gradients if g.requires_grad]
            directions = [x[b] for g, x in zip(gradients, columns, strict=True) if g.requires_grad]
            moved: Sequence[Tensor | None] = [None] * len(params)
            if outputs:
                moved = torch.autograd.grad(outputs, params, directions, create_graph=True, allow_unused=True)
            pairs = [(m, x) for m, x in zip(moved, columns, strict=True) if m is not None]
            third = [m for m, _ in pairs], [x for _, x in pairs]
            second = list(gradients), [q[:, b] for q in tangents]
            per_column.append(_pull_back(third[0] + second[0], params, third[1] + second[1]))
        return [torch.stack(of_one, dim=1) for of_one in zip(*per_column, strict=True)]

    return Curvature(lambda columns: _pull_back(gradients, params, columns), product_tangents=product_tangents)


def gauss_newton(loss: Tensor, output: Tensor, params: Sequence[Tensor]) -> Curvature:
    """Make the Gauss–Newton matrix Jᵀ L J: three backward passes per column.

    Args:
        loss: scalar, computed from ``output``, with its graph.
        output: of the network, any shape.
        params: what J is the Jacobian with respect to.
    """
    (slope,) = torch.autograd.grad(loss, output, create_graph=True)
    weights = torch.zeros_like(output, requires_grad=True)  # J v is the derivative of ⟨Jᵀ u, v⟩ with respect to u
    pulled = torch.autograd.grad(output, params, weights, create_graph=True, allow_unused=True)

    def products(columns: Columns) -> Columns:
        used = [(p, x) for p, x in zip(pulled, columns, strict=True) if p is not None]
        moved = _pull_back([p for p, _ in used], [weights], [x for _, x in used])
        return _pull_back([output], params, _pull_back([slope], [output], moved))

    return Curvature(products)


def diagonal(entries: Sequence[Tensor]) -> Curvature:
    """Make a diagonal matrix from its entries, each of its parameter's shape."""
    return Curvature(lambda _: [entry.unsqueeze(0) for entry in entries], is_diagonal=True)


def gauss_newton_diagonal(loss: Tensor, output: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """Compute the diagonal of the Gauss–Newton matrix, exactly, by one backward pass per number in ``output``.

    Args:
        loss: scalar, convex in the output, with its graph.
        output: of the network, any shape.
        params: what the network depends on.

    Returns:
        Per parameter, a non-negative tensor of its shape.
    """
    (slope,) = torch.autograd.grad(loss, output, create_graph=True)
    unit = torch.eye(output.numel(), dtype=output.dtype, device=output.device).reshape(-1, *output.shape)
    loss_hessian = _pull_back([slope], [output], [unit])[0].reshape(output.numel(), -1)
    values, vectors = torch.linalg.eigh(loss_hessian)
    root = (vectors * values.clamp(min=0).sqrt()).T.reshape(-1, *output.shape)  # L = Σ root_r root_rᵀ
    entries = [torch.zeros_like(p) for p in params]
    for rows in root.split(COLUMNS_AT_ONCE):
        for entry, pulled in zip(entries, _pull_back([output], params, [rows]), strict=True):
            entry.add_(pulled.square().sum(0))
    return entries


def _pull_back(outputs: Sequence[Tensor], inputs: Sequence[Tensor], columns: Columns) -> Columns:
    """Σ_j columns_j · ∂outputs_j/∂inputs of every column, [columns, *input.shape]; 0 where there is no dependence."""
    n_columns = len(columns[0]) if columns else 1
    result = [x.new_zeros(n_columns, *x.shape) for x in inputs]
    kept = [(output, column) for output, column in zip(outputs, columns, strict=True) if output.requires_grad]
    for start in range(0, n_columns if kept else 0, COLUMNS_AT_ONCE):
        part = slice(start, start + COLUMNS_AT_ONCE)
        pulled = torch.autograd.grad(
            [output for output, _ in kept],
            inputs,
            [column[part] for _, column in kept],
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
        )
        for target, value in zip(result, pulled, strict=True):
            if value is not None:
                target[part] = value
    return result
