"""Vocab-parallel embedding: y = table[x].

    B batch   S sequence   D features   V rows of the table   N ids, N <= V   tp devices on the axis "tp"

    x_BS a device        [B, S]         ids, int64: no gradient
    table_VD a device    [V/tp, D]
    y_BSD a device       [B, S, D]
    forward              all-reduce y_BSD     each device looks up the ids that it has rows for, and adds 0 for others
    backward             no collective        each device has the rows that its part of the gradient belongs to

A vocabulary that tp does not divide (50257) is padded: V is a multiple of tp, the rows from N on are zero, no id
reaches them, and their gradient is zero. The parameter is the padded table; pad once, to a multiple of every tp in
question (Megatron: 128), and it is the same parameter at every tp. Ids outside the N are refused on the host, by
`check_ids`: on the devices PyTorch would raise (eagerly), JAX would return NaN, and a masked lookup 0.

Source: Megatron-LM, https://arxiv.org/abs/1909.08053, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import axis_index, with_sharding_constraint
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import map_shards, reduce_from_tp
from jax_tp.layouts import Plan, State, place

PLANS = {
    "vocab_parallel": Plan(x=P(None, None), y=P(None, None, None), params={"embedding": P("tp", None)}),
}


def pad_rows(table_ND: np.ndarray, multiple: int) -> np.ndarray:
    """The table [V, D] with zero rows appended; V is the next multiple: 50257 ids and multiple=128 give 50304 rows."""
    num_missing = -len(table_ND) % multiple
    return np.concatenate([table_ND, np.zeros((num_missing, *table_ND.shape[1:]), table_ND.dtype)])


def check_ids(name: str, ids: np.ndarray, num_ids: int, ignored: int | None = None) -> None:
    """Refuse ids outside [0, num_ids) other than `ignored`: ValueError that says which and where."""
    outside = ((ids < 0) | (ids >= num_ids)) & (ids != ignored)
    if outside.any():
        where = tuple(map(int, np.argwhere(outside)[0]))
        also = "" if ignored is None else f" (or {ignored}: ignored)"
        raise ValueError(f"{name}{list(where)} is {ids[where]}: ids are 0 to {num_ids - 1}{also}")


def check_inputs(inputs: Mapping[str, np.ndarray], num_ids: int) -> None:
    """Refuse ids outside the vocabulary (ValueError), on the host, before they are placed."""
    check_ids("x", inputs["x"], num_ids)


def check_rows(mesh: Mesh, table: np.ndarray | jax.ShapeDtypeStruct) -> None:
    """Refuse a table whose rows tp does not divide: ValueError that says how many would do."""
    num_rows, tp = table.shape[0], mesh.shape["tp"]
    if num_rows % tp:
        raise ValueError(f"tp={tp} does not divide the {num_rows} rows of the table; pad_rows(table, {tp}) would work")


def check_size(table: np.ndarray | jax.ShapeDtypeStruct, num_ids: int) -> None:
    """Refuse a table with fewer rows than ids: ValueError."""
    if num_ids > table.shape[0]:
        raise ValueError(f"the table has {table.shape[0]} rows, fewer than the {num_ids} ids")


class ShardedEmbedding(nnx.Embed):
    """Flax's own layer with the given state, its table laid out as the plan says."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State) -> None:
        V, D = state["table"].shape
        check_rows(mesh, state["table"])
        self.plan = plan
        super().__init__(
            V,
            D,
            param_dtype=state["table"].dtype,
            embedding_init=lambda *_: place(state["table"], mesh, plan.params["embedding"]),
            rngs=nnx.Rngs(0),
        )


# ---------------------------------------------------------------------------------------------------------- auto


class AutoEmbedding(ShardedEmbedding):
    """The compiler sees a lookup in a table with sharded rows: it masks, and inserts the all-reduce."""

    def __call__(self, x_BS: jax.Array) -> jax.Array:
        return with_sharding_constraint(super().__call__(x_BS), self.plan.y)


# --------------------------------------------------------------------------------------------------------- typed


class TypedEmbedding(ShardedEmbedding):
    """A lookup in a table with sharded rows is ambiguous: `out_sharding` asks for the whole sum, an all-reduce."""

    def __call__(self, x_BS: jax.Array) -> jax.Array:
        return self.embedding[...].at[x_BS].get(out_sharding=self.plan.y)


# -------------------------------------------------------------------------------------------------------- manual


def masked_lookup(ids: jax.Array, table: jax.Array, axis: str) -> jax.Array:
    """table[ids] where the id is one of the own rows, else 0; [B, S], [V/tp, D] -> [B, S, D], a part of the sum."""
    own = ids - axis_index(axis) * table.shape[0]
    is_own = (own >= 0) & (own < table.shape[0])  # [B, S]
    rows = table[jnp.where(is_own, own, 0)]
    return jnp.where(is_own[..., None], rows, 0)


class ManualEmbedding(ShardedEmbedding):
    """Masked lookup, then g."""

    def __call__(self, x_BS: jax.Array) -> jax.Array:
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, self.plan.params["embedding"]),
            out_specs=self.plan.y,
        )
        return per_device(x_BS, self.embedding[...])

    def body(self, x: jax.Array, table: jax.Array) -> jax.Array:
        y = masked_lookup(x, table, "tp")  # [B, S, D]
        return reduce_from_tp(y, "tp")


STYLES = {"auto": AutoEmbedding, "typed": TypedEmbedding, "manual": ManualEmbedding}


def build(mesh: Mesh, style: str, plan: Plan, state: State, num_ids: int) -> nnx.Module:
    """The layer in one of the three styles; `state` holds the global table [V, D], of which num_ids rows are ids.

    Raises ValueError for a table that is smaller than num_ids, or that tp does not divide.
    """
    check_size(state["table"], num_ids)
    return STYLES[style](mesh, plan, state)
