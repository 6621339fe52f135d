"""Megatron's attention with q, k, v in one weight: [q | k | v] = x w_qkv + b_qkv, then as in attention.py.

    B batch   S sequence   D features   H heads   K key and value heads   G = H/K   E features per head

                        the columns of w_qkv in memory                       per device
    contiguous          all of q, then all of k, then all of v (K = H)      [D, 3, H/tp*E]
    per_head            for each of the K: its G heads of q, one k, one v    [D, K/tp*(G+2)*E]

The order decides how the weight may be sharded. In per-head order (Megatron-LM's) the columns of a device are adjacent,
so an ordinary column-parallel linear is correct. If contiguous columns were split into tp equal parts, the first device
would hold only q; so the weight is viewed as three matrices, [D, 3, H*E], each sharded by heads. A compiler that is
given the naive sharding computes the right numbers, but has to send q, k and v to the devices where they belong.

    forward             all-reduce y_BSD
    backward            all-reduce dx_BSD

Source: Megatron-LM, https://arxiv.org/abs/1909.08053; the order of its columns is that of its `ParallelAttention`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, reshard
from jax.sharding import PartitionSpec as P

from jax_tp.attention import COLUMN, ROW, Heads, attend, check_heads
from jax_tp.collectives import copy_to_tp, map_shards, reduce_from_tp
from jax_tp.layouts import Plan, State, child
from jax_tp.linear import (
    REPLICATED,
    AutoColumnLinear,
    AutoRowLinear,
    ShardedLinear,
    TypedRowLinear,
    linear,
    values,
)
from jax_tp.packed import PACKED_COLUMN, ShardedPackedLinear, linears
from jax_tp.state import check_plan, check_state

PLANS = {
    "contiguous": Plan(x=REPLICATED, y=REPLICATED, children={"qkv": PACKED_COLUMN, "o": ROW}),
    "per_head": Plan(x=REPLICATED, y=REPLICATED, children={"qkv": COLUMN, "o": ROW}),
}


def is_contiguous(plan: Plan) -> bool:
    """Whether the columns are contiguous: all of q, then all of k, then all of v."""
    return plan.children["qkv"] is PACKED_COLUMN


def split_qkv(qkv: jax.Array, heads: Heads) -> tuple[jax.Array, ...]:
    """q [B, S, H*E] and k, v [B, S, K*E] of [B, S, 3, H*E] (contiguous) or of [B, S, K*(G+2)*E] (per head)."""
    if qkv.ndim == 4:
        return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    groups = qkv.reshape(*qkv.shape[:2], -1, heads.group + 2, heads.size)
    parts = jnp.split(groups, [heads.group, heads.group + 1], 3)
    return tuple(part.reshape(*qkv.shape[:2], -1) for part in parts)


# ---------------------------------------------------------------------------------------------------------- auto


class AutoFusedAttention(nnx.Module):
    """Heads are whole on each device before and after `split_qkv`, so the compiler sends nothing in between."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, heads: Heads) -> None:
        self.heads = heads
        column = ShardedPackedLinear if is_contiguous(plan) else AutoColumnLinear
        self.qkv = column(mesh, plan.children["qkv"], child(state, "qkv"))
        self.o = AutoRowLinear(mesh, plan.children["o"], child(state, "o"))

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        return self.o(attend(*split_qkv(self.qkv(x_BSD), self.heads), self.heads))


# --------------------------------------------------------------------------------------------------------- typed


class TypedFusedAttention(nnx.Module):
    """A packed weight [D, 3, H*E@tp] gives a product [B, S, 3, H*E@tp]; a single weight [D, N@tp] one [B, S, N@tp]."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, heads: Heads) -> None:
        self.plan, self.heads = plan, heads
        column = ShardedPackedLinear if is_contiguous(plan) else ShardedLinear
        self.qkv = column(mesh, plan.children["qkv"], child(state, "qkv"))
        self.o = TypedRowLinear(mesh, plan.children["o"], child(state, "o"))

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        x_BSD = reshard(x_BSD, P(None, None, None, reduced={"tp"}))  # its transpose: the all-reduce of dx
        product = linears if is_contiguous(self.plan) else linear
        qkv = product(x_BSD, *values(self.qkv))
        return self.o(attend(*split_qkv(qkv, self.heads), self.heads))


# -------------------------------------------------------------------------------------------------------- manual


class ManualFusedAttention(nnx.Module):
    """Per-device code for the whole layer: f at the input, g at the output."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, heads: Heads) -> None:
        self.plan, self.heads = plan, heads
        column = ShardedPackedLinear if is_contiguous(plan) else ShardedLinear
        self.qkv = column(mesh, plan.children["qkv"], child(state, "qkv"))
        self.o = ShardedLinear(mesh, plan.children["o"], child(state, "o"))

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, *self.qkv.specs, *self.o.specs),
            out_specs=self.plan.y,
        )
        return per_device(x_BSD, *values(self.qkv), *values(self.o))

    def body(
        self,
        x: jax.Array,
        w_qkv: jax.Array,
        b_qkv: jax.Array | None,
        w_o: jax.Array,
        b_o: jax.Array | None,
    ) -> jax.Array:
        x = copy_to_tp(x, "tp")  # [B, S, D]
        product = linears if is_contiguous(self.plan) else linear
        qkv = product(x, w_qkv, b_qkv)  # [B, S, 3, H/tp*E] or [B, S, K/tp*(G+2)*E]
        y = attend(*split_qkv(qkv, self.heads), self.heads)  # [B, S, H/tp*E]
        y = reduce_from_tp(linear(y, w_o), "tp")  # [B, S, D]
        return y if b_o is None else y + b_o


# The state by name, in sizes: state.py.
OUT = {"o.w": "H*E D", "o.b?": "D"}
CONTIGUOUS = {"qkv.w": "D 3 H*E", "qkv.b?": "3 H*E", **OUT}
PER_HEAD = {"qkv.w": "D N*E", "qkv.b?": "N*E", **OUT}  # N = H + 2 K heads

STYLES = {"auto": AutoFusedAttention, "typed": TypedFusedAttention, "manual": ManualFusedAttention}


def build(
    mesh: Mesh,
    style: str,
    plan: Plan,
    state: State,
    num_heads: int,
    num_kv_heads: int,
    causal: bool = False,
    rope_theta: float | None = None,
) -> nnx.Module:
    """The layer in one of the three styles; `state`: the global qkv.w, [D, 3, H*E] or [D, K*(G+2)*E], o.w, any biases.

    Raises ValueError if tp does not divide the heads, or for contiguous columns with K < H.
    """
    check_plan(plan, PLANS)
    sizes = {"H": num_heads, "N": num_heads + 2 * num_kv_heads}
    check_state(state, CONTIGUOUS if is_contiguous(plan) else PER_HEAD, sizes)

    check_heads(num_heads, num_kv_heads, mesh.shape["tp"])
    if is_contiguous(plan) and num_heads != num_kv_heads:
        raise ValueError(
            f"num_kv_heads={num_kv_heads}: contiguous q, k, v are of one size; take {num_heads}, or per_head"
        )
    size, group = state["o.w"].shape[0] // num_heads, num_heads // num_kv_heads
    return STYLES[style](mesh, plan, state, Heads(size, group, causal, rope_theta))
