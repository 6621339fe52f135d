"""Megatron's attention: y = (softmax(q k^T / sqrt(E)) v) w_o + b_o, with q = x w_q + b_q, k = x w_k + b_k, v likewise.

    B batch   S, T sequence (of queries, of keys)   D features   tp devices on the axis "tp"
    H heads   K key and value heads (K = H: multi-head; K < H: grouped-query)   G = H/K   E features per head

    x_BSD per device           [B, S, D]
    w_q per device             [D, H/tp*E]
    w_k, w_v per device        [D, K/tp*E]     query head h reads key head h//G, which is on its device
    scores_KBGST per device    [K/tp, B, G, S, T]
    w_o per device             [H/tp*E, D]
    y_BSD per device           [B, S, D]
    forward                    all-reduce y_BSD
    backward                   all-reduce dx_BSD once: dq w_q^T + dk w_k^T + dv w_v^T is summed on each device first

Under the plan `sequence_parallel`, x and y are [B, S/tp, D] per device: x is gathered once and y is reduce-scattered,
and the reverse in the backward pass. Each device adds the bias of o to its own tokens, so its gradient is all-reduced.

Whole heads are sharded; they are as independent of each other as the hidden features of the MLP. So tp must divide K.
For fewer key heads than devices see `replicated_kv.py`; for q, k, v in one weight, `fused_attention.py`.
Given a `step`, each device applies dropout to the probabilities of its own heads (dropout.py).
The softmax, its scaling and RoPE are computed in float32 for bfloat16; the matrix products take and return bfloat16.

Sources: Megatron-LM, https://arxiv.org/abs/1909.08053, section 3, figure 3b; GQA, https://arxiv.org/abs/2305.13245.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh, reshard
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import copy_to_tp, gather_from_sp, map_shards, reduce_from_tp, reduce_scatter_to_sp
from jax_tp.dropout import STEP, Draw, dropout, make_draw
from jax_tp.layouts import Plan, State, child
from jax_tp.linear import PLANS as LINEAR
from jax_tp.linear import (
    REPLICATED,
    SEQUENCE_SHARDED,
    AutoColumnLinear,
    AutoRowLinear,
    ShardedLinear,
    TypedRowLinear,
    linear,
    values,
)
from jax_tp.rope import rotate, rotations
from jax_tp.state import check_plan, check_state

COLUMN, ROW = LINEAR["column_parallel"], LINEAR["row_parallel"]

PLANS = {
    "megatron": Plan(
        x=REPLICATED,
        y=REPLICATED,
        inputs=STEP,
        children={"q": COLUMN, "k": COLUMN, "v": COLUMN, "o": ROW},
    ),
    "sequence_parallel": Plan(
        x=SEQUENCE_SHARDED,
        y=SEQUENCE_SHARDED,
        inputs=STEP,
        children={"q": COLUMN, "k": COLUMN, "v": COLUMN, "o": LINEAR["row_sequence_parallel"]},
    ),
}


@dataclass(frozen=True)
class Heads:
    """The hyperparameters that do not follow from the shapes of the weights."""

    size: int  # E
    group: int  # G, query heads per key head
    causal: bool  # queries do not see later keys
    rope_theta: float | None  # None: no rotary embedding
    draw: Draw | None = None  # dropout of the probabilities


def check_heads(num_heads: int, num_kv_heads: int, size: int, axis: str = "tp") -> None:
    """Raises ValueError if the heads cannot be sharded whole, each query head together with its key head."""
    if num_heads % num_kv_heads:
        raise ValueError(f"num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}: take a divisor")
    if num_kv_heads % size:
        fits = [way for way in range(1, num_kv_heads + 1) if num_kv_heads % way == 0]
        is_shared = axis == "tp" and size % num_kv_heads == 0
        shared = f", or replicated_kv with kv={num_kv_heads},rep={size // num_kv_heads}" if is_shared else ""
        raise ValueError(
            f"{axis}={size} does not divide num_kv_heads={num_kv_heads}: {axis} in {fits} would work{shared}"
        )


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    heads: Heads,
    step: jax.Array | None = None,
    axis: str | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(E)) v for the heads given: q [B, S, H*E]; k, v [B, S, K*E] -> [B, S, H*E].

    The sharding of the features H*E carries over to the outer factor, the heads, and back.
    """
    B, S, E, K = *q.shape[:2], heads.size, k.shape[2] // heads.size
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q = q.reshape(B, S, K, -1, E).transpose(2, 0, 3, 1, 4)  # [K, B, G, S, E]
    k, v = (array.reshape(B, S, K, E).transpose(2, 0, 1, 3) for array in (k, v))  # [K, B, S, E]
    if heads.rope_theta is not None:
        cos, sin = (jnp.asarray(table, wide) for table in rotations(S, E, heads.rope_theta))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    scores = jnp.einsum("kbgse,kbte->kbgst", q, k).astype(wide) * E**-0.5
    if heads.causal:
        later = jnp.triu(jnp.ones((S, S), bool), 1)
        scores = jnp.where(later, -jnp.inf, scores)
    weights = dropout(jax.nn.softmax(scores, -1), step, heads.draw, 0, axis)
    y = jnp.einsum("kbgst,kbte->kbgse", weights.astype(v.dtype), v)
    return y.transpose(1, 3, 0, 2, 4).reshape(B, S, -1)  # [B, S, K*G*E]


# ---------------------------------------------------------------------------------------------------------- auto


class AutoAttention(nnx.Module):
    """Linears whose parameters carry their shardings; the compiler sums the three parts of dx, then sends."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, heads: Heads) -> None:
        self.plan, self.heads = plan, heads
        self.q = AutoColumnLinear(mesh, plan.children["q"], child(state, "q"))
        self.k = AutoColumnLinear(mesh, plan.children["k"], child(state, "k"))
        self.v = AutoColumnLinear(mesh, plan.children["v"], child(state, "v"))
        self.o = AutoRowLinear(mesh, plan.children["o"], child(state, "o"))

    def __call__(self, x_BSD: jax.Array, step: jax.Array | None = None) -> jax.Array:
        # The constraint applies to the gradient too: backward, the sum of the three partial gradients is all-reduced.
        x_BSD = with_sharding_constraint(x_BSD, self.plan.children["q"].x)
        return self.o(attend(self.q(x_BSD), self.k(x_BSD), self.v(x_BSD), self.heads, step))


# --------------------------------------------------------------------------------------------------------- typed


class TypedAttention(nnx.Module):
    """q, k, v keep the type K@tp of their heads from the projections to the last product."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, heads: Heads) -> None:
        self.heads = heads
        self.q = ShardedLinear(mesh, plan.children["q"], child(state, "q"))
        self.k = ShardedLinear(mesh, plan.children["k"], child(state, "k"))
        self.v = ShardedLinear(mesh, plan.children["v"], child(state, "v"))
        self.o = TypedRowLinear(mesh, plan.children["o"], child(state, "o"))

    def __call__(self, x_BSD: jax.Array, step: jax.Array | None = None) -> jax.Array:
        # The gradient of a `reduced` x is `unreduced` until here: one all-reduce for q, k and v.
        x_BSD = reshard(x_BSD, P(None, None, None, reduced={"tp"}))
        q, k, v = (linear(x_BSD, *values(part)) for part in (self.q, self.k, self.v))  # [B, S, H*E@tp], [B, S, K*E@tp]
        return self.o(attend(q, k, v, self.heads, step))


# -------------------------------------------------------------------------------------------------------- manual


class ManualAttention(nnx.Module):
    """Per-device code for the whole layer: f at the input, g at the output, or their sequence-parallel counterparts."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, heads: Heads) -> None:
        self.plan, self.heads = plan, heads
        self.q = ShardedLinear(mesh, plan.children["q"], child(state, "q"))
        self.k = ShardedLinear(mesh, plan.children["k"], child(state, "k"))
        self.v = ShardedLinear(mesh, plan.children["v"], child(state, "v"))
        self.o = ShardedLinear(mesh, plan.children["o"], child(state, "o"))

    def __call__(self, x_BSD: jax.Array, step: jax.Array | None = None) -> jax.Array:
        linears = self.q, self.k, self.v, self.o
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, *(spec for part in linears for spec in part.specs), P()),
            out_specs=self.plan.y,
        )
        return per_device(x_BSD, *(array for part in linears for array in values(part)), step)

    def body(
        self,
        x: jax.Array,
        w_q: jax.Array,
        b_q: jax.Array | None,
        w_k: jax.Array,
        b_k: jax.Array | None,
        w_v: jax.Array,
        b_v: jax.Array | None,
        w_o: jax.Array,
        b_o: jax.Array | None,
        step: jax.Array | None,
    ) -> jax.Array:
        x = gather_from_sp(x, "tp", dim=1) if self.plan.x == SEQUENCE_SHARDED else copy_to_tp(x, "tp")  # [B, S, D]
        q = linear(x, w_q, b_q)  # [B, S, H/tp*E]
        k, v = linear(x, w_k, b_k), linear(x, w_v, b_v)  # [B, S, K/tp*E]
        y = attend(q, k, v, self.heads, step, "tp")  # [B, S, H/tp*E]
        y = linear(y, w_o)  # [B, S, D], partial
        if self.plan.y == SEQUENCE_SHARDED:
            y = reduce_scatter_to_sp(y, "tp", dim=1)  # [B, S/tp, D]
            return y if b_o is None else y + copy_to_tp(b_o, "tp")
        y = reduce_from_tp(y, "tp")  # [B, S, D]
        return y if b_o is None else y + b_o


# The state by name, in sizes: state.py.
SHAPES = {
    **{"q.w": "D H*E", "q.b?": "H*E"},
    **{f"{name}.{leaf}": shape for name in "kv" for leaf, shape in (("w", "D K*E"), ("b?", "K*E"))},
    **{"o.w": "H*E D", "o.b?": "D"},
}

STYLES = {"auto": AutoAttention, "typed": TypedAttention, "manual": ManualAttention}


def build(
    mesh: Mesh,
    style: str,
    plan: Plan,
    state: State,
    num_heads: int,
    num_kv_heads: int,
    causal: bool = False,
    rope_theta: float | None = None,
    drop_rate: float = 0.0,
    seed: int = 0,
    layer: int = 0,
) -> nnx.Module:
    """The layer in one of the three styles; `state`: the global q.w [D, H*E], k.w, v.w [D, K*E], o.w [H*E, D], biases.

    drop_rate: of the dropout on the probabilities, active when a `step` is given; seed, layer: its key.
    Raises ValueError if tp does not divide the heads, and as `make_draw` does.
    """
    check_plan(plan, PLANS)
    check_state(state, SHAPES, {"H": num_heads, "K": num_kv_heads})

    check_heads(num_heads, num_kv_heads, mesh.shape["tp"])
    size, group = state["o.w"].shape[0] // num_heads, num_heads // num_kv_heads
    draw = make_draw(drop_rate, seed, layer)
    return STYLES[style](mesh, plan, state, Heads(size, group, causal, rope_theta, draw))
