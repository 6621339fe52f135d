"""Embedding and head that share one table: h = table[x], y = h table^T.

    B batch   S sequence   D features   V rows of the table, and logits   tp devices on the axis "tp"

                         vocab_parallel        sequence_parallel
    x_BS per device      [B, S]                [B, S]              ids
    table_VD per device  [V/tp, D]             [V/tp, D]           one parameter: its gradient sums over both uses
    h_BSD per device     [B, S, D]             [B, S/tp, D]
    y_BSV per device     [B, S, V/tp]          [B, S, V/tp]        logits, as the cross entropy takes them
    forward              all-reduce h_BSD      reduce-scatter h_BSD, all-gather h_BSD
    backward             all-reduce dh_BSD     reduce-scatter dh_BSD, all-gather dh_BSD

A vocab-parallel embedding is sharded by rows, and the head's weight [V, D] by its output features: the same rows. What
lies between the two (here nothing; in a model, its blocks) sees all features of all tokens, or of this device's.

Sources: Press & Wolf, https://arxiv.org/abs/1608.05859; Megatron-LM, https://arxiv.org/abs/1909.08053, section 3;
sequence parallelism, https://arxiv.org/abs/2205.05198, section 4.2.2.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh, reshard
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import copy_to_tp, gather_from_sp, map_shards
from jax_tp.embedding import PLANS as EMBEDDING
from jax_tp.embedding import AutoEmbedding, ManualEmbedding, TypedEmbedding, check_ids, check_size
from jax_tp.layouts import Plan, State, child
from jax_tp.linear import REPLICATED, SEQUENCE_SHARDED
from jax_tp.state import check_plan, check_state

PLANS = {
    plan: Plan(x=P(None, None), y=P(None, None, "tp"), children={"embed": EMBEDDING[plan]})
    for plan in ("vocab_parallel", "sequence_parallel")
}


def check_inputs(inputs: Mapping[str, np.ndarray], num_ids: int) -> None:
    """Raises ValueError for ids outside the vocabulary; runs on the host, before the ids are placed."""
    check_ids("x", inputs["x"], num_ids)


class Tied(nnx.Module):
    """The layers `embed` and `logits` with one table: a model puts its blocks between them."""

    @abstractmethod
    def logits(self, h_BSD: jax.Array) -> jax.Array:
        """y_BSV, sharded on V, of h_BSD as `embed` lays it out."""

    def __call__(self, x_BS: jax.Array) -> jax.Array:
        return self.logits(self.embed(x_BS))


# ---------------------------------------------------------------------------------------------------------- auto


class AutoTied(Tied):
    """`attend` is the head of an nnx.Embed: the module has one table, which nothing can untie."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State) -> None:
        self.plan = plan
        self.embed = AutoEmbedding(mesh, plan.children["embed"], child(state, "embed"))

    def logits(self, h_BSD: jax.Array) -> jax.Array:
        # Without this the compiler may gather the table instead, where it is smaller than h.
        h_BSD = with_sharding_constraint(h_BSD, P(self.plan.y[0], None, None))
        return with_sharding_constraint(self.embed.attend(h_BSD), self.plan.y)


# --------------------------------------------------------------------------------------------------------- typed


class TypedTied(Tied):
    """The table of type [V@tp, D] gives logits of type [B, S, V@tp]."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State) -> None:
        self.embed = TypedEmbedding(mesh, plan.children["embed"], child(state, "embed"))

    def logits(self, h_BSD: jax.Array) -> jax.Array:
        return self.embed.attend(reshard(h_BSD, REPLICATED))  # [B, S, V@tp]


# -------------------------------------------------------------------------------------------------------- manual


class ManualTied(Tied):
    """Masked lookup and g; f and the product with this device's rows; or the sequence-parallel counterparts of g, f."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State) -> None:
        self.plan = plan
        self.embed = ManualEmbedding(mesh, plan.children["embed"], child(state, "embed"))

    def logits(self, h_BSD: jax.Array) -> jax.Array:
        embed = self.plan.children["embed"]
        per_device = map_shards(
            self.body,
            in_specs=(embed.y, embed.params["embedding"]),
            out_specs=self.plan.y,
        )
        return per_device(h_BSD, self.embed.embedding[...])

    def body(self, h: jax.Array, table: jax.Array) -> jax.Array:
        is_own = self.plan.children["embed"].y == SEQUENCE_SHARDED
        h = gather_from_sp(h, "tp", dim=1) if is_own else copy_to_tp(h, "tp")  # [B, S, D]
        return jnp.dot(h, table.T)  # [B, S, V/tp]


# The state by name, in sizes: state.py.
SHAPES = {"embed.table": "V D"}

STYLES = {"auto": AutoTied, "typed": TypedTied, "manual": ManualTied}


def build(mesh: Mesh, style: str, plan: Plan, state: State, num_ids: int) -> nnx.Module:
    """The layer in one of the three styles; `state`: the global embed.table [V, D], whose first num_ids rows are used.

    Raises ValueError for a table with fewer rows than num_ids, or whose rows tp does not divide.
    """
    check_plan(plan, PLANS)
    check_state(state, SHAPES)

    check_size(state["embed.table"], num_ids)
    return STYLES[style](mesh, plan, state)
