"""The product of a device's blocks of x and w by one of the algorithms, with its gradients.

R and C are the numbers of devices along the axes `rows` and `columns`, which shard the rows and the columns of y. These
are "x" and "y", or "y" and "x" in every second layer of `stationary`.

    algorithm     x per device   w per device   y per device   collectives
    summa         [M/R, K/C]     [K/R, N/C]     [M/R, N/C]     summa.py
    cannon        [M/R, K/C]     [K/R, N/C]     [M/R, N/C]     cannon.py
    gathered      [M/R, K/C]     [K/R, N/C]     [M/R, N/C]     forward all-gathers of x and w, backward reduce-scatters
    stationary    [M/C, K/R]     [K/R, N/C]     [M/R, N/C]     all-gather of x, reduce-scatter of y; the transposes

The head of a tied table (tied.py) multiplies by w^T with blocks [N/R, K/C] of w: `multiply_transposed`.

`matmul.py` gives the payloads. `summa` and `cannon` save only a device's blocks for the backward pass and send panels
or blocks again: their gradients are algorithms of their own. `gathered` and `stationary` are transposed collective by
collective, and save the gathered operands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import gather_from_sp, reduce_scatter_to_sp
from jax_tp.grid.cannon import Cannon, check_square
from jax_tp.grid.collectives import in_order
from jax_tp.grid.summa import Summa
from jax_tp.layouts import Plan


@dataclass(frozen=True)
class Grid:
    """The axes that shard the rows and the columns of a product, and its algorithm."""

    rows: str
    columns: str
    algorithm: str
    panel: int  # width along K, for `summa`; 0: the widest panel that lies within one block


def axes_of(layout: P) -> tuple[str, str]:
    """The axes that shard the first and the last dim."""
    return layout[0], layout[-1]


def grid_of(plan: Plan, panel: int = 0) -> Grid:
    """The Grid of a layer whose output has the plan's layout of y."""
    return Grid(*axes_of(plan.y), plan.algorithm, panel)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def grid_product(a: jax.Array, b: jax.Array, algorithm: Summa | Cannon) -> jax.Array:
    """a b, the algorithm's first form, with the other two as gradients; saves only this device's blocks."""
    return algorithm.ab(a, b)


def _product_forward(a: jax.Array, b: jax.Array, algorithm: Summa | Cannon) -> tuple[jax.Array, Any]:
    return algorithm.ab(a, b), (a, b)


def _product_backward(algorithm: Summa | Cannon, saved: Any, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    a, b, c = in_order(*saved, c)  # or XLA may keep what the forward pass received of a and b to send it once
    grad_a, a, c = in_order(algorithm.abt(c, b), a, c)  # one gradient after the other, to limit memory
    return grad_a, algorithm.atb(a, c)


grid_product.defvjp(_product_forward, _product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def transposed_product(c: jax.Array, b: jax.Array, algorithm: Summa | Cannon) -> jax.Array:
    """c b^T, the algorithm's second form, with the other two as gradients; saves only this device's blocks."""
    return algorithm.abt(c, b)


def _transposed_forward(c: jax.Array, b: jax.Array, algorithm: Summa | Cannon) -> tuple[jax.Array, Any]:
    return algorithm.abt(c, b), (c, b)


def _transposed_backward(algorithm: Summa | Cannon, saved: Any, a: jax.Array) -> tuple[jax.Array, jax.Array]:
    c, b, a = in_order(*saved, a)  # as in `grid_product`
    grad_c, c, a = in_order(algorithm.ab(a, b), c, a)
    return grad_c, algorithm.atb(a, c)


transposed_product.defvjp(_transposed_forward, _transposed_backward)


def widest_panel(size: int, grid: Grid) -> int:
    """The width of the widest panel that lies within one block, for a dim of this size."""
    return size // math.lcm(lax.axis_size(grid.rows), lax.axis_size(grid.columns))


def summa(x: jax.Array, w: jax.Array, grid: Grid) -> jax.Array:
    """Panel by panel."""
    panel = grid.panel or widest_panel(x.shape[1] * lax.axis_size(grid.columns), grid)
    return grid_product(x, w, Summa(grid.rows, grid.columns, panel))


def cannon(x: jax.Array, w: jax.Array, grid: Grid) -> jax.Array:
    """Block by block around the rings. Raises ValueError for a grid that is not square."""
    check_square(lax.axis_size(grid.rows), lax.axis_size(grid.columns))
    return grid_product(x, w, Cannon(grid.rows, grid.columns))


def gathered(x: jax.Array, w: jax.Array, grid: Grid) -> jax.Array:
    """Gather the rows of x and the columns of w that this device's block of y needs, then one product."""
    x = gather_from_sp(x, grid.columns, dim=1)  # [M/R, K]
    w = gather_from_sp(w, grid.rows, dim=0)  # [K, N/C]
    return jnp.dot(x, w)


def stationary(x: jax.Array, w: jax.Array, grid: Grid) -> jax.Array:
    """Gather all rows of x for this device's block of w, which stays where it is."""
    x = gather_from_sp(x, grid.columns, dim=0)  # [M, K/R]
    y = jnp.dot(x, w)  # [M, N/C], partial: a sum over K/R
    return reduce_scatter_to_sp(y, grid.rows, dim=0)


ALGORITHMS = {"summa": summa, "cannon": cannon, "gathered": gathered, "stationary": stationary}


def multiply(x: jax.Array, w: jax.Array, grid: Grid) -> jax.Array:
    """x w of the shards that the algorithm takes; x may have more row dims after the first, e.g. [B, S, K]."""
    y = ALGORITHMS[grid.algorithm](x.reshape(-1, x.shape[-1]), w, grid)
    return y.reshape(-1, *x.shape[1:-1], w.shape[1])


def multiply_transposed(x: jax.Array, w: jax.Array, grid: Grid) -> jax.Array:
    """x w^T, x [B/R, S, K/C], w [N/R, K/C] -> [B/R, S, N/C]; `stationary`: x [B/C, S, K/R], w [N/C, K/R]."""
    if grid.algorithm == "stationary":
        return multiply(x, w.T, grid)
    panel = grid.panel or widest_panel(w.shape[0] * lax.axis_size(grid.rows), grid)
    y = transposed_product(x.reshape(-1, x.shape[-1]), w, Summa(grid.rows, grid.columns, panel))
    return y.reshape(*x.shape[:-1], -1)
