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
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Shard

from torch_tp.collectives import gather_from_sp, reduce_scatter_to_sp
from torch_tp.grid.cannon import Cannon, check_square
from torch_tp.grid.summa import Summa
from torch_tp.layouts import Plan


@dataclass(frozen=True)
class Grid:
    """The axes that shard the rows and the columns of a product, and its algorithm."""

    rows: DeviceMesh
    columns: DeviceMesh
    algorithm: str
    panel: int  # width along K, for `summa`; 0: the widest panel that lies within one block


def axes_of(mesh: DeviceMesh, layout: tuple[Placement, ...]) -> tuple[DeviceMesh, DeviceMesh]:
    """The axes that shard the first and the last dim."""
    names, last = mesh.mesh_dim_names or (), max(placement.dim for placement in layout)
    rows, columns = (mesh[names[layout.index(Shard(dim))]] for dim in (0, last))
    return rows, columns


def grid_of(mesh: DeviceMesh, plan: Plan, panel: int = 0) -> Grid:
    """The Grid of a layer whose output has the plan's layout of y."""
    return Grid(*axes_of(mesh, plan.y), plan.algorithm, panel)


class _GridProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor, algorithm: Summa | Cannon) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        ctx.algorithm = algorithm
        return algorithm.ab(a, b)

    @staticmethod
    def backward(ctx: Any, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        a, b = ctx.saved_tensors
        return ctx.algorithm.abt(c, b), ctx.algorithm.atb(a, c), None


def grid_product(a: torch.Tensor, b: torch.Tensor, algorithm: Summa | Cannon) -> torch.Tensor:
    """a b, the algorithm's first form, with the other two as gradients; saves only this device's blocks."""
    return _GridProduct.apply(a, b, algorithm)


class _TransposedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, c: torch.Tensor, b: torch.Tensor, algorithm: Summa | Cannon) -> torch.Tensor:
        ctx.save_for_backward(c, b)
        ctx.algorithm = algorithm
        return algorithm.abt(c, b)

    @staticmethod
    def backward(ctx: Any, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        c, b = ctx.saved_tensors
        return ctx.algorithm.ab(a, b), ctx.algorithm.atb(a, c), None


def transposed_product(c: torch.Tensor, b: torch.Tensor, algorithm: Summa | Cannon) -> torch.Tensor:
    """c b^T, the algorithm's second form, with the other two as gradients; saves only this device's blocks."""
    return _TransposedProduct.apply(c, b, algorithm)


def widest_panel(size: int, grid: Grid) -> int:
    """The width of the widest panel that lies within one block, for a dim of this size."""
    return size // math.lcm(grid.rows.size(), grid.columns.size())


def summa(x: torch.Tensor, w: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Panel by panel."""
    panel = grid.panel or widest_panel(x.shape[1] * grid.columns.size(), grid)
    return grid_product(x, w, Summa(grid.rows, grid.columns, panel))


def cannon(x: torch.Tensor, w: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Block by block around the rings. Raises ValueError for a grid that is not square."""
    check_square(grid.rows.size(), grid.columns.size())
    return grid_product(x, w, Cannon(grid.rows, grid.columns))


def gathered(x: torch.Tensor, w: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Gather the rows of x and the columns of w that this device's block of y needs, then one product."""
    x = gather_from_sp(x, grid.columns, dim=1)  # [M/R, K]
    w = gather_from_sp(w, grid.rows, dim=0)  # [K, N/C]
    return x @ w


def stationary(x: torch.Tensor, w: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Gather all rows of x for this device's block of w, which stays where it is."""
    x = gather_from_sp(x, grid.columns, dim=0)  # [M, K/R]
    y = x @ w  # [M, N/C], partial: a sum over K/R
    return reduce_scatter_to_sp(y, grid.rows, dim=0)


ALGORITHMS = {"summa": summa, "cannon": cannon, "gathered": gathered, "stationary": stationary}


def multiply(x: torch.Tensor, w: torch.Tensor, grid: Grid) -> torch.Tensor:
    """x w of the shards that the algorithm takes; x may have more row dims after the first, e.g. [B, S, K]."""
    y = ALGORITHMS[grid.algorithm](x.flatten(0, -2), w, grid)
    return y.unflatten(0, (-1, *x.shape[1:-1]))


def multiply_transposed(x: torch.Tensor, w: torch.Tensor, grid: Grid) -> torch.Tensor:
    """x w^T, x [B/R, S, K/C], w [N/R, K/C] -> [B/R, S, N/C]; `stationary`: x [B/C, S, K/R], w [N/C, K/R]."""
    if grid.algorithm == "stationary":
        return multiply(x, w.T, grid)
    summa = Summa(grid.rows, grid.columns, grid.panel or widest_panel(w.shape[0] * grid.rows.size(), grid))
    y = transposed_product(x.flatten(0, -2), w, summa)
    return y.unflatten(0, (-1, *x.shape[1:-1]))
