"""Attention with fewer key and value heads than devices: each key head is replicated on several devices.

    B batch   S sequence   D features   H heads   K key and value heads   E features per head
    kv = K     devices with different key heads       the tp = kv * rep devices are a mesh of the axes "kv" and "rep"
    rep        devices with the same key head         (rep = tp / K: tp must be a multiple of K)

    w_q per device       [D, H/(kv*rep)*E]
    w_k, w_v per device  [D, K/kv*E]            the head that its queries read, replicated over rep
    y_BSD per device     [B, S, D]
    forward              all-reduce y_BSD over kv and rep
    backward             all-reduce dx_BSD over kv and rep, once
                         all-reduce dw_k, dw_v over rep: D*K/kv*E each (and db_k, db_v: K/kv*E)

Each replica computes the gradient from its own queries only; the gradient of the weight is the sum over the replicas.
If the all-reduce is forgotten nothing fails; the replicas drift apart.

Source: GQA, https://arxiv.org/abs/2305.13245; vLLM and Megatron-LM replicate key heads in the same way for K < tp.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh, reshard
from jax.sharding import PartitionSpec as P

from jax_tp.attention import SHAPES, Heads, attend
from jax_tp.collectives import copy_to_tp, map_shards, reduce_from_tp
from jax_tp.layouts import Plan, State, child
from jax_tp.linear import REPLICATED, ShardedLinear, linear, values
from jax_tp.state import check_plan, check_state

AXES = ("kv", "rep")
HEADS, KEYS = P(None, None, AXES), P(None, None, "kv")
QUERY = Plan(x=REPLICATED, y=HEADS, params={"kernel": P(None, AXES), "bias": P(AXES)})
KEY = Plan(x=REPLICATED, y=KEYS, params={"kernel": P(None, "kv"), "bias": P("kv")})
ROW = Plan(x=HEADS, y=REPLICATED, params={"kernel": P(AXES, None), "bias": P(None)})

PLANS = {"megatron": Plan(x=REPLICATED, y=REPLICATED, children={"q": QUERY, "k": KEY, "v": KEY, "o": ROW})}


def check_heads(num_heads: int, num_kv_heads: int, kv: int, rep: int) -> None:
    """Raises ValueError if the heads cannot be sharded whole, each query head together with its key head."""
    if num_kv_heads % kv or (kv < num_kv_heads and rep > 1):
        raise ValueError(f"kv={kv}, rep={rep}: with num_kv_heads={num_kv_heads}, kv={num_kv_heads} would work")
    if num_heads % (kv * rep):
        raise ValueError(f"num_heads={num_heads}: kv * rep = {kv * rep} devices do not divide it; take a multiple")


def shape_of_copies(w: jax.Array, size: int, rep: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes in which a weight [..., K*E] becomes rep copies of each head: [..., K, 1, E] and [..., K, rep, E]."""
    K = w.shape[-1] // size
    return (*w.shape[:-1], K, 1, size), (*w.shape[:-1], K, rep, size)


# ---------------------------------------------------------------------------------------------------------- auto


class AutoReplicatedKv(nnx.Module):
    """Repeats each key head's weight rep times, which sends nothing: attention with K*rep key heads.

    The transpose of repeating is the sum over the replicas. Otherwise the compiler would sum dk and dv, more bytes.
    """

    def __init__(self, mesh: Mesh, plan: Plan, state: State, heads: Heads) -> None:
        self.plan, self.heads, self.rep = plan, heads, mesh.shape["rep"]
        self.q = ShardedLinear(mesh, plan.children["q"], child(state, "q"))
        self.k = ShardedLinear(mesh, plan.children["k"], child(state, "k"))
        self.v = ShardedLinear(mesh, plan.children["v"], child(state, "v"))
        self.o = ShardedLinear(mesh, plan.children["o"], child(state, "o"))

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        x_BSD = with_sharding_constraint(x_BSD, REPLICATED)
        q = with_sharding_constraint(linear(x_BSD, *values(self.q)), HEADS)
        k, v = (linear(x_BSD, *map(self.copies, values(part))) for part in (self.k, self.v))
        y_BSN = attend(q, with_sharding_constraint(k, HEADS), with_sharding_constraint(v, HEADS), self.heads)
        return with_sharding_constraint(linear(with_sharding_constraint(y_BSN, HEADS), *values(self.o)), self.plan.y)

    def copies(self, w: jax.Array | None) -> jax.Array | None:
        """[..., K*E] -> [..., K*rep*E]."""
        if w is None:
            return None
        one, all_ = shape_of_copies(w, self.heads.size, self.rep)
        layout = P(*[None] * (w.ndim - 1), "kv", "rep", None)
        return with_sharding_constraint(jnp.broadcast_to(w.reshape(one), all_), layout).reshape(*w.shape[:-1], -1)


# --------------------------------------------------------------------------------------------------------- typed


class TypedReplicatedKv(nnx.Module):
    """The same with explicit shardings: the transpose of a broadcast along rep is a sum along rep."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, heads: Heads) -> None:
        self.plan, self.heads, self.rep = plan, heads, mesh.shape["rep"]
        self.q = ShardedLinear(mesh, plan.children["q"], child(state, "q"))
        self.k = ShardedLinear(mesh, plan.children["k"], child(state, "k"))
        self.v = ShardedLinear(mesh, plan.children["v"], child(state, "v"))
        self.o = ShardedLinear(mesh, plan.children["o"], child(state, "o"))

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        x_BSD = reshard(x_BSD, P(None, None, None, reduced=set(AXES)))  # its transpose: the all-reduce of dx
        q = linear(x_BSD, *values(self.q))  # [B, S, H*E@(kv, rep)]
        k, v = (linear(x_BSD, *map(self.copies, values(part))) for part in (self.k, self.v))
        y_BSD = jnp.dot(attend(q, k, v, self.heads), values(self.o)[0], out_sharding=self.plan.y)
        return y_BSD if self.o.bias is None else y_BSD + values(self.o)[1]

    def copies(self, w: jax.Array | None) -> jax.Array | None:
        """[..., K*E@kv] -> [..., K*rep*E@(kv, rep)]."""
        if w is None:
            return None
        one, all_ = shape_of_copies(w, self.heads.size, self.rep)
        rest = [None] * (w.ndim - 1)
        w = jnp.broadcast_to(w.reshape(one), all_, out_sharding=P(*rest, "kv", "rep", None))
        return jnp.reshape(w, (*w.shape[:-3], -1), out_sharding=P(*rest, AXES))


# -------------------------------------------------------------------------------------------------------- manual


class ManualReplicatedKv(nnx.Module):
    """Per-device code: f and g over all devices, and f over the replicas for the weights of keys and values."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, heads: Heads) -> None:
        self.plan, self.heads = plan, heads
        self.q = ShardedLinear(mesh, plan.children["q"], child(state, "q"))
        self.k = ShardedLinear(mesh, plan.children["k"], child(state, "k"))
        self.v = ShardedLinear(mesh, plan.children["v"], child(state, "v"))
        self.o = ShardedLinear(mesh, plan.children["o"], child(state, "o"))

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        linears = self.q, self.k, self.v, self.o
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, *(spec for part in linears for spec in part.specs)),
            out_specs=self.plan.y,
        )
        return per_device(x_BSD, *(array for part in linears for array in values(part)))

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
    ) -> jax.Array:
        x = copy_to_tp(x, AXES)  # [B, S, D]
        w_k, w_v = copy_to_tp(w_k, "rep"), copy_to_tp(w_v, "rep")  # [D, K/kv*E]
        b_k, b_v = (None if b is None else copy_to_tp(b, "rep") for b in (b_k, b_v))  # [K/kv*E]
        q = linear(x, w_q, b_q)  # [B, S, H/(kv*rep)*E]
        k, v = linear(x, w_k, b_k), linear(x, w_v, b_v)  # [B, S, K/kv*E]
        y = attend(q, k, v, self.heads)  # [B, S, H/(kv*rep)*E]
        y = reduce_from_tp(linear(y, w_o), AXES)  # [B, S, D]
        return y if b_o is None else y + b_o


STYLES = {"auto": AutoReplicatedKv, "typed": TypedReplicatedKv, "manual": ManualReplicatedKv}


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
    """The layer in one of the three styles; `state`: the global q.w [D, H*E], k.w, v.w [D, K*E], o.w [H*E, D], biases.

    Raises ValueError if the heads do not fit the mesh.
    """
    check_plan(plan, PLANS)
    check_state(state, SHAPES, {"H": num_heads, "K": num_kv_heads})

    check_heads(num_heads, num_kv_heads, *mesh.shape.values())
    size, group = state["o.w"].shape[0] // num_heads, num_heads // num_kv_heads
    return STYLES[style](mesh, plan, state, Heads(size, group, causal, rope_theta))
