"""Vocab-parallel embedding: y = table[x].

    B batch   S sequence   D features   V rows of the table   N ids, N <= V   tp devices on the axis "tp"

                         vocab_parallel       sequence_parallel
    x_BS per device      [B, S]               [B, S]                  ids, int64: no gradient
    table_VD per device  [V/tp, D]            [V/tp, D]
    y_BSD per device     [B, S, D]            [B, S/tp, D]
    forward              all-reduce y_BSD     reduce-scatter y_BSD
    backward             no collective        all-gather dy_BSD

Each device looks up the ids whose rows it holds and contributes 0 for the others. In the backward pass it needs the
gradient of all tokens, and uses those whose ids fall into its rows.

A vocabulary size that tp does not divide (50257) is padded: V is a multiple of tp, and the rows from N on are zero, are
never looked up, and have a zero gradient. The parameter is the padded table: pad once, to a multiple of every tp in
question (Megatron-LM: 128), and it is the same parameter at every tp. Ids outside [0, N) are rejected on the host, by
`check_ids`; on the devices PyTorch would raise (eagerly), JAX would return NaN, and a masked lookup would return 0.

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
    """The table with zero rows appended, up to a multiple of `multiple`: 50257 ids and multiple=128 give 50304 rows."""
    num_missing = -len(table_ND) % multiple
    return np.concatenate([table_ND, np.zeros((num_missing, *table_ND.shape[1:]), table_ND.dtype)])


def check_ids(name: str, ids: np.ndarray, num_ids: int, ignored: int | None = None) -> None:
    """Raises ValueError, with the id and its position, for an id outside [0, num_ids) that is not `ignored`."""
    outside = ((ids < 0) | (ids >= num_ids)) & (ids != ignored)
    if outside.any():
        where = tuple(map(int, np.argwhere(outside)[0]))
        also = "" if ignored is None else f" (or {ignored}: ignored)"
        raise ValueError(f"{name}{list(where)} is {ids[where]}: ids are 0 to {num_ids - 1}{also}")


def check_inputs(inputs: Mapping[str, np.ndarray], num_ids: int) -> None:
    """Raises ValueError for ids outside the vocabulary; runs on the host, before the ids are placed."""
    check_ids("x", inputs["x"], num_ids)


def check_rows(mesh: Mesh, table: np.ndarray | jax.ShapeDtypeStruct, axis: str = "tp") -> None:
    """Raises ValueError, with a number of rows that would work, if the axis does not divide the rows of the table."""
    num_rows, size = table.shape[0], mesh.shape[axis]
    if num_rows % size:
        problem = f"{axis}={size} does not divide the {num_rows} rows of the table"
        raise ValueError(f"{problem}; pad_rows(table, {size}) would work")


def check_size(table: np.ndarray | jax.ShapeDtypeStruct, num_ids: int) -> None:
    """Raises ValueError for a table with fewer rows than ids."""
    if num_ids > table.shape[0]:
        raise ValueError(f"the table has {table.shape[0]} rows, fewer than the {num_ids} ids")


def check_tokens(num_tokens: int, tp: int) -> None:
    """Raises ValueError, with lengths that would work, for a sequence that sequence parallelism cannot shard."""
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

    Followed by the constraint to this device's tokens, that becomes a reduce-scatter. Flax's own forward would write
    NaN for ids outside the table; and without the first constraint the ids are sharded too and then gathered again.
    """

    def __call__(self, x_BS: jax.Array) -> jax.Array:
        if self.plan.y == SEQUENCE_SHARDED:
            check_tokens(x_BS.shape[1], self.axis_size)
        table_VD = with_sharding_constraint(self.embedding[...], self.plan.params["embedding"])
        y_BSD = with_sharding_constraint(table_VD[x_BS], P(self.plan.y[0], None, None))
        return with_sharding_constraint(y_BSD, self.plan.y)


# --------------------------------------------------------------------------------------------------------- typed


class TypedEmbedding(ShardedEmbedding):
    """The sharding of a lookup in sharded rows is ambiguous: `out_sharding` asks for the sum, by an all-reduce.

    With the reshard to this device's tokens it becomes a reduce-scatter. Asked for that directly, XLA gathers ids too.
    """

    def __call__(self, x_BS: jax.Array) -> jax.Array:
        if self.plan.y == SEQUENCE_SHARDED:
            check_tokens(x_BS.shape[1], self.axis_size)
        y_BSD = self.embedding[...].at[x_BS].get(out_sharding=P(None, None, None))
        return reshard(y_BSD, self.plan.y)


# -------------------------------------------------------------------------------------------------------- manual


def masked_rows(ids: jax.Array, table: jax.Array, first: int | jax.Array) -> jax.Array:
    """The row of each id if this shard of the table, which starts at id `first`, has it, else 0.

    [B, S], [V/tp, D] -> [B, S, D]
    """
    own = ids - first
    is_own = (own >= 0) & (own < table.shape[0])  # [B, S]
    rows = table[jnp.where(is_own, own, 0)]
    return jnp.where(is_own[..., None], rows, 0)


def masked_lookup(ids: jax.Array, table: jax.Array, axis: str) -> jax.Array:
    """table[ids] for ids in this device's rows, else 0: [B, S], [V/tp, D] -> [B, S, D], partial."""
    return masked_rows(ids, table, axis_index(axis) * table.shape[0])


class ManualEmbedding(ShardedEmbedding):
    """Masked lookup, then g or its sequence-parallel counterpart."""

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
    """The layer in one of the three styles; `state` holds the global table [V, D], whose first num_ids rows are used.

    Raises ValueError for a table with fewer rows than num_ids, or whose rows tp does not divide.
    """
    check_plan(plan, PLANS)
    check_state(state, SHAPES)

    check_size(state["table"], num_ids)
    return STYLES[style](mesh, plan, state)
