"""Vocab-parallel embedding: y = table[x].

    B batch   S sequence   D features   V rows of the table   N ids, N <= V   tp devices on the axis "tp"

                         vocab_parallel       sequence_parallel
    x_BS per device      [B, S]               [B, S]                  ids, int64: no gradient
    table_VD per device  [V/tp, D]            [V/tp, D]
    y_BSD per device     [B, S, D]            [B, S/tp, D]
    forward              all-reduce y_BSD     reduce-scatter y_BSD
    backward             no collective        all-gather dy_BSD

Each device looks up the ids that it has rows for, and adds 0 for others. Backward it needs the gradient of all tokens,
of which it keeps what belongs to its rows.

A vocabulary that tp does not divide (50257) is padded: V is a multiple of tp, the rows from N on are zero, no id
reaches them, and their gradient is zero. The parameter is the padded table; pad once, to a multiple of every tp in
question (Megatron: 128), and it is the same parameter at every tp. Ids outside the N are refused on the host, by
`check_ids`: on the devices PyTorch would raise (eagerly), JAX would return NaN, and a masked lookup 0.

Sources: Megatron-LM, https://arxiv.org/abs/1909.08053, section 3; sequence parallelism,
https://arxiv.org/abs/2205.05198, section 4.2.2.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import axis_index, with_sharding_constraint
from jax.sharding import Mesh, reshard
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import map_shards, reduce_from_tp, reduce_scatter_to_sp
from jax_tp.layouts import Plan, State, place
from jax_tp.linear import SEQUENCE_SHARDED
from jax_tp.state import check_plan, check_state

PLANS = {
    "vocab_parallel": Plan(x=P(None, None), y=P(None, None, None), params={"embedding": P("tp", None)}),
    "sequence_parallel": Plan(x=P(None, None), y=SEQUENCE_SHARDED, params={"embedding": P("tp", None)}),
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


def check_rows(mesh: Mesh, table: np.ndarray | jax.ShapeDtypeStruct, axis: str = "tp") -> None:
    """Refuse a table whose rows the axis does not divide: ValueError that says how many would do."""
    num_rows, size = table.shape[0], mesh.shape[axis]
    if num_rows % size:
        problem = f"{axis}={size} does not divide the {num_rows} rows of the table"
        raise ValueError(f"{problem}; pad_rows(table, {size}) would work")


def check_size(table: np.ndarray | jax.ShapeDtypeStruct, num_ids: int) -> None:
    """Refuse a table with fewer rows than ids: ValueError."""
    if num_ids > table.shape[0]:
        raise ValueError(f"the table has {table.shape[0]} rows, fewer than the {num_ids} ids")


def check_tokens(num_tokens: int, tp: int) -> None:
    """Refuse a sequence that sequence parallelism cannot cut: ValueError that says which lengths would do."""
    if num_tokens % tp:
        below = num_tokens // tp * tp
        fits = " or ".join(str(size) for size in (below, below + tp) if size)
        raise ValueError(f"tp={tp} does not divide the sequence of {num_tokens} tokens; {fits} would work")


class ShardedEmbedding(nnx.Embed):
    """Flax's own layer with the given state, its table laid out as the plan says."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State) -> None:
        V, D = state["table"].shape
        check_rows(mesh, state["table"])
        self.axis_size, self.plan = mesh.shape["tp"], plan
        super().__init__(
            V,
            D,
            param_dtype=state["table"].dtype,
            embedding_init=lambda *_: place(state["table"], mesh, plan.params["embedding"]),
            rngs=nnx.Rngs(0),
        )


# ---------------------------------------------------------------------------------------------------------- auto


class AutoEmbedding(ShardedEmbedding):
    """The compiler sees a lookup in a table with sharded rows: it masks, and inserts the all-reduce.

    With a slice of it behind, for the own tokens, that becomes a reduce-scatter. Flax's own forward would write NaN for
    ids outside the table in between; and without the first constraint the ids are shared out too, and gathered again.
    """

    def __call__(self, x_BS: jax.Array) -> jax.Array:
        if self.plan.y == SEQUENCE_SHARDED:
            check_tokens(x_BS.shape[1], self.axis_size)
        y_BSD = with_sharding_constraint(self.embedding[...][x_BS], P(self.plan.y[0], None, None))
        return with_sharding_constraint(y_BSD, self.plan.y)


# --------------------------------------------------------------------------------------------------------- typed


class TypedEmbedding(ShardedEmbedding):
    """A lookup in a table with sharded rows is ambiguous: `out_sharding` asks for the whole sum, an all-reduce.

    With the slice for the own tokens that is a reduce-scatter. Asked for own tokens, XLA gathers ids as well.
    """

    def __call__(self, x_BS: jax.Array) -> jax.Array:
        if self.plan.y == SEQUENCE_SHARDED:
            check_tokens(x_BS.shape[1], self.axis_size)
        y_BSD = self.embedding[...].at[x_BS].get(out_sharding=P(None, None, None))
        return reshard(y_BSD, self.plan.y)


# -------------------------------------------------------------------------------------------------------- manual


def masked_rows(ids: jax.Array, table: jax.Array, first: int | jax.Array) -> jax.Array:
    """The row of each id where the table has it, from id `first` on, else 0; [B, S], [V/tp, D] -> [B, S, D]."""
    own = ids - first
    is_own = (own >= 0) & (own < table.shape[0])  # [B, S]
    rows = table[jnp.where(is_own, own, 0)]
    return jnp.where(is_own[..., None], rows, 0)


def masked_lookup(ids: jax.Array, table: jax.Array, axis: str) -> jax.Array:
    """table[ids] where the id is one of the own rows, else 0; [B, S], [V/tp, D] -> [B, S, D], a part of the sum."""
    return masked_rows(ids, table, axis_index(axis) * table.shape[0])


class ManualEmbedding(ShardedEmbedding):
    """Masked lookup, then g, or its counterpart for shards of S."""

    def __call__(self, x_BS: jax.Array) -> jax.Array:
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, self.plan.params["embedding"]),
            out_specs=self.plan.y,
        )
        return per_device(x_BS, self.embedding[...])

    def body(self, x: jax.Array, table: jax.Array) -> jax.Array:
        y = masked_lookup(x, table, "tp")  # [B, S, D]
        if self.plan.y == SEQUENCE_SHARDED:
            check_tokens(x.shape[1], self.axis_size)
            return reduce_scatter_to_sp(y, "tp", dim=1)  # [B, S/tp, D]
        return reduce_from_tp(y, "tp")


# The state by name, in sizes: state.py.
SHAPES = {"table": "V D"}

STYLES = {"auto": AutoEmbedding, "typed": TypedEmbedding, "manual": ManualEmbedding}


def build(mesh: Mesh, style: str, plan: Plan, state: State, num_ids: int) -> nnx.Module:
    """The layer in one of the three styles; `state` holds the global table [V, D], of which num_ids rows are ids.

    Raises ValueError for a table that is smaller than num_ids, or that tp does not divide.
    """
    check_plan(plan, PLANS)
    check_state(state, SHAPES)

    check_size(state["table"], num_ids)
    return STYLES[style](mesh, plan, state)
