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

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import copy_to_tp, gather_from_sp, map_shards, reduce_scatter_to_sp
from jax_tp.embedding import check_inputs, check_rows, check_size, masked_lookup, masked_rows
from jax_tp.grid.collectives import broadcast, in_order, reduce_scatter
from jax_tp.grid.linear import BLOCK
from jax_tp.layouts import Plan, State, place

__all__ = ["PLANS", "STYLES", "GridPositions", "ManualGridEmbedding", "build", "check_inputs"]

IDS, TABLE, COLUMNS = P("x", None), P("x", "y"), P(None, "y")

PLANS = {
    "summa": Plan(x=IDS, y=BLOCK, params={"embedding": TABLE}, algorithm="summa"),
    "stationary": Plan(x=IDS, y=BLOCK, params={"embedding": TABLE}, algorithm="stationary"),
}
POSITIONS = Plan(x=BLOCK, y=BLOCK, params={"embedding": COLUMNS})


def rows_of(grad: jax.Array, ids: jax.Array, num_rows: int) -> jax.Array:
    """The gradient of the table from that of the rows looked up: [B, S, D], [B, S] -> [V, D]."""
    return jnp.zeros((num_rows, grad.shape[-1]), grad.dtype).at[ids].add(grad)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def panel_lookup(ids: jax.Array, table: jax.Array, axis: str) -> jax.Array:
    """table[ids] for this device's tokens, block by block of the table: [B/X, S], [V/X, D/Y] -> [B/X, S, D/Y]."""
    size, y = len(table), jnp.zeros((), table.dtype)
    coming = broadcast(table, axis, 0)
    for owner in range(lax.axis_size(axis)):
        block, y = in_order(coming, y)
        if owner < lax.axis_size(axis) - 1:
            coming = broadcast(table, axis, owner + 1)
        y = y + masked_rows(ids, block, owner * size)
    return y


def _lookup_forward(ids: jax.Array, table: jax.Array, axis: str) -> tuple[jax.Array, Any]:
    return panel_lookup(ids, table, axis), (ids, len(table) * lax.axis_size(axis))


def _lookup_backward(axis: str, saved: Any, grad: jax.Array) -> tuple[None, jax.Array]:
    ids, num_rows = saved
    return None, reduce_scatter(rows_of(grad, ids, num_rows), axis, dim=0)


panel_lookup.defvjp(_lookup_forward, _lookup_backward)


def stationary_lookup(ids: jax.Array, table: jax.Array, axis: str) -> jax.Array:
    """The same by looking up all tokens in this device's block of the table; the results are reduce-scattered."""
    ids = gather_from_sp(ids, axis, dim=0)  # [B, S]
    y = masked_lookup(ids, table, axis)  # [B, S, D/Y], partial
    return reduce_scatter_to_sp(y, axis, dim=0)


LOOKUPS = {"summa": panel_lookup, "stationary": stationary_lookup}


# -------------------------------------------------------------------------------------------------------- manual


class ManualGridEmbedding(nnx.Module):
    """The lookup on each device; the rows of the table are sharded over x."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State) -> None:
        check_rows(mesh, state["table"], "x")
        self.plan = plan
        self.embedding = nnx.Param(place(state["table"], mesh, plan.params["embedding"]))

    def __call__(self, x_BS: jax.Array) -> jax.Array:
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, self.plan.params["embedding"]),
            out_specs=self.plan.y,
        )
        return per_device(x_BS, self.embedding[...])

    def body(self, x: jax.Array, table: jax.Array) -> jax.Array:
        return LOOKUPS[self.plan.algorithm](x, table, "x")


class GridPositions(nnx.Module):
    """A learned vector per position; its features are sharded over y, as those of h."""

    def __init__(self, mesh: Mesh, style: str, plan: Plan, state: State) -> None:
        self.plan = plan
        self.embedding = nnx.Param(place(state["table"], mesh, plan.params["embedding"]))

    def __call__(self, h_BSD: jax.Array) -> jax.Array:
        S, C = h_BSD.shape[1], self.embedding.shape[0]
        if S > C:
            raise ValueError(f"S={S} tokens, but the model has {C} positions: S <= {C} would work")
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, self.plan.params["embedding"]),
            out_specs=self.plan.y,
        )
        return per_device(h_BSD, self.embedding[...])

    def body(self, h: jax.Array, table: jax.Array) -> jax.Array:
        return h + copy_to_tp(table[: h.shape[1]], "x")  # [S, D/Y]


STYLES = {"manual": ManualGridEmbedding}


def build(mesh: Mesh, style: str, plan: Plan, state: State, num_ids: int) -> nnx.Module:
    """The layer; `state` holds the global table [V, D], whose first num_ids rows are used.

    Raises ValueError for a table with fewer rows than num_ids, or whose rows x does not divide.
    """
    check_size(state["table"], num_ids)
    return STYLES[style](mesh, plan, state)
