"""Embedding on the grid: y = table[x], with the table split along both dims; and learned positions, h + table[:S].

    B batch   S sequence   D features   V rows of the table   N ids, N <= V   X by Y devices on the axes "x" and "y"

    x_BS per device      [B/X, S]          ids, int64: no gradient
    table_VD per device  [V/X, D/Y]
    y_BSD per device     [B/X, S, D/Y]

    plan         forward                                          backward
    summa        broadcast x: each block of the table, V D/Y      reduce-scatter x: dtable, V D/Y
    stationary   all-gather x: ids B S (int64);                   all-gather x: dy, B S D/Y
                 reduce-scatter x: y, B S D/Y

`summa` is SUMMA's product of one-hot rows and the table without forming the one-hot rows: the blocks of the table are
broadcast one by one, and each device looks up the ids of its tokens in them. The gradients of all blocks are held
before they are reduced. In `stationary` the table stays: each device looks up the ids of all tokens in its own block,
and the results are reduce-scattered. That sends less if there are fewer tokens than rows.

    positions            summa and stationary: table_CD a device [C, D/Y]; backward all-reduce x: the S rows used, S D/Y

Sources: Optimus, https://arxiv.org/abs/2104.05343; padding of the vocabulary: embedding.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import local_map

from torch_tp.collectives import copy_to_tp, gather_from_sp, reduce_scatter_to_sp
from torch_tp.embedding import check_inputs, check_rows, check_size, masked_lookup, masked_rows
from torch_tp.grid.collectives import broadcast, reduce_scatter, wait
from torch_tp.grid.linear import BLOCK
from torch_tp.layouts import Plan, place

__all__ = ["PLANS", "STYLES", "GridPositions", "ManualGridEmbedding", "build", "check_inputs"]

IDS, TABLE, COLUMNS = (Shard(0), Replicate()), (Shard(0), Shard(1)), (Replicate(), Shard(1))

PLANS = {
    "summa": Plan(x=IDS, y=BLOCK, params={"weight": TABLE}, algorithm="summa"),
    "stationary": Plan(x=IDS, y=BLOCK, params={"weight": TABLE}, algorithm="stationary"),
}
POSITIONS = Plan(x=BLOCK, y=BLOCK, params={"weight": COLUMNS})


class _PanelLookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: torch.Tensor, table: torch.Tensor, axis: DeviceMesh) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.axis, ctx.num_rows, size = axis, len(table) * axis.size(), len(table)
        coming, y = broadcast(table, axis, 0), 0
        for owner in range(axis.size()):
            block = wait(coming)
            if owner < axis.size() - 1:
                coming = broadcast(table, axis, owner + 1)
            y = y + masked_rows(ids, block, owner * size)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        (ids,) = ctx.saved_tensors
        return None, wait(reduce_scatter(rows_of(grad, ids, ctx.num_rows), ctx.axis, dim=0)), None


def rows_of(grad: torch.Tensor, ids: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The gradient of the table from that of the rows looked up: [B, S, D], [B, S] -> [V, D]."""
    table = grad.new_zeros(num_rows, grad.shape[-1])
    return table.index_add(0, ids.flatten(), grad.flatten(0, -2))


def panel_lookup(ids: torch.Tensor, table: torch.Tensor, axis: DeviceMesh) -> torch.Tensor:
    """table[ids] for this device's tokens, block by block of the table: [B/X, S], [V/X, D/Y] -> [B/X, S, D/Y]."""
    return _PanelLookup.apply(ids, table, axis)


def stationary_lookup(ids: torch.Tensor, table: torch.Tensor, axis: DeviceMesh) -> torch.Tensor:
    """The same by looking up all tokens in this device's block of the table; the results are reduce-scattered."""
    ids = gather_from_sp(ids, axis, dim=0)  # [B, S]
    y = masked_lookup(ids, table, axis)  # [B, S, D/Y], partial
    return reduce_scatter_to_sp(y, axis, dim=0)


LOOKUPS = {"summa": panel_lookup, "stationary": stationary_lookup}


# -------------------------------------------------------------------------------------------------------- manual


class ManualGridEmbedding(nn.Module):
    """The lookup on each device; the rows of the table are sharded over x."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        check_rows(mesh, state["table"], "x")
        self.mesh, self.plan = mesh, plan
        self.weight = nn.Parameter(place(state["table"], mesh, plan.params["weight"]))

    def forward(self, x_BS: DTensor) -> DTensor:
        per_device = local_map(
            self.body,
            in_placements=(self.plan.x, self.plan.params["weight"]),
            out_placements=list(self.plan.y),
            device_mesh=self.mesh,
        )
        return per_device(x_BS, self.weight)

    def body(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return LOOKUPS[self.plan.algorithm](x, table, self.mesh["x"])


class GridPositions(nn.Module):
    """A learned vector per position; its features are sharded over y, as those of h."""

    def __init__(self, mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.mesh, self.plan = mesh, plan
        self.weight = nn.Parameter(place(state["table"], mesh, plan.params["weight"]))

    def forward(self, h_BSD: DTensor) -> DTensor:
        S, C = h_BSD.shape[1], self.weight.shape[0]
        if S > C:
            raise ValueError(f"S={S} tokens, but the model has {C} positions: S <= {C} would work")
        per_device = local_map(
            self.body,
            in_placements=(self.plan.x, self.plan.params["weight"]),
            out_placements=list(self.plan.y),
            device_mesh=self.mesh,
        )
        return per_device(h_BSD, self.weight)

    def body(self, h: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return h + copy_to_tp(table[: h.shape[1]], self.mesh["x"])  # [S, D/Y]


STYLES = {"manual": ManualGridEmbedding}


def build(mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], num_ids: int) -> nn.Module:
    """The layer; `state` holds the global table [V, D], whose first num_ids rows are used.

    Raises ValueError for a table with fewer rows than num_ids, or whose rows x does not divide.
    """
    check_size(state["table"], num_ids)
    return STYLES[style](mesh, plan, state)
