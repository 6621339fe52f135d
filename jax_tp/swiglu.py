"""Gated MLP of Llama: y = (silu(x w_gate + b_gate) * (x w_up + b_up)) w_down + b_down, silu(z) = z / (1 + exp(-z)).

    B batch   S sequence   D features   F hidden features   tp devices on the axis "tp"

                                    megatron              sequence_parallel
    x_BSD per device                [B, S, D]             [B, S/tp, D]
    w_gate_DF, w_up_DF per device   [D, F/tp]             [D, F/tp]
    h_BSF per device                [B, S, F/tp]          [B, S, F/tp]
    w_down_FD per device            [F/tp, D]             [F/tp, D]
    y_BSD per device                [B, S, D]             [B, S/tp, D]
    forward                         all-reduce y_BSD      all-gather x_BSD, reduce-scatter y_BSD
    backward                        all-reduce dx_BSD     all-gather dy_BSD, reduce-scatter dx_BSD, all-reduce db_down_D

Both gate and up read x: each device adds their two contributions to dx before the one all-reduce. Packed, gate and up
are one product with w_gate_up_D2F, [D, 2, F/tp] per device; packed.py explains why it is not [D, 2*F/tp].

Sources: Shazeer, https://arxiv.org/abs/2002.05202; Megatron-LM, https://arxiv.org/abs/1909.08053, section 3; sequence
parallelism, https://arxiv.org/abs/2205.05198, section 4.2.2.
"""

from __future__ import annotations

import jax
from flax import nnx
from jax.lax import with_sharding_constraint
from jax.nn import silu
from jax.sharding import Mesh, reshard
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import copy_to_tp, gather_from_sp, map_shards, reduce_from_tp, reduce_scatter_to_sp
from jax_tp.layouts import Plan, State, child
from jax_tp.linear import PLANS as LINEAR
from jax_tp.linear import (
    REPLICATED,
    SEQUENCE_SHARDED,
    AutoRowLinear,
    ShardedLinear,
    TypedRowLinear,
    linear,
    values,
)
from jax_tp.packed import PACKED_COLUMN, ShardedPackedLinear, linears
from jax_tp.state import check_plan, check_state

# The layer gathers x once for gate and up, which therefore see an x that is replicated.
INTO = {"gate": LINEAR["column_parallel"], "up": LINEAR["column_parallel"], "gate_up": PACKED_COLUMN}

PLANS = {
    "megatron": Plan(x=REPLICATED, y=REPLICATED, children={**INTO, "down": LINEAR["row_parallel"]}),
    "sequence_parallel": Plan(
        x=SEQUENCE_SHARDED, y=SEQUENCE_SHARDED, children={**INTO, "down": LINEAR["row_sequence_parallel"]}
    ),
}


def is_packed(state: State) -> bool:
    """Whether gate and up are one parameter."""
    return any(name.startswith("gate_up.") for name in state)


def gated(gate_BSF: jax.Array, up_BSF: jax.Array) -> jax.Array:
    """silu(gate) * up, elementwise on this device's features."""
    return silu(gate_BSF) * up_BSF


# ---------------------------------------------------------------------------------------------------------- auto


class AutoSwiglu(nnx.Module):
    """Linears whose parameters carry their shardings and one constraint on x for both; the compiler does the rest."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State) -> None:
        self.plan, self.is_packed = plan, is_packed(state)
        if self.is_packed:
            self.gate_up = ShardedPackedLinear(mesh, plan.children["gate_up"], child(state, "gate_up"))
        else:
            self.gate = ShardedLinear(mesh, plan.children["gate"], child(state, "gate"))
            self.up = ShardedLinear(mesh, plan.children["up"], child(state, "up"))
        self.down = AutoRowLinear(mesh, plan.children["down"], child(state, "down"))

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        x_BSD = with_sharding_constraint(x_BSD, P(self.plan.x[0], None, None))
        if self.is_packed:
            gate_up = with_sharding_constraint(self.gate_up(x_BSD), self.plan.children["gate_up"].y)
            return self.down(gated(gate_up[:, :, 0], gate_up[:, :, 1]))
        gate, up = (with_sharding_constraint(layer(x_BSD), layer.plan.y) for layer in (self.gate, self.up))
        return self.down(gated(gate, up))


# --------------------------------------------------------------------------------------------------------- typed


class TypedSwiglu(nnx.Module):
    """x is typed `reduced` over tp, so that its gradient stays `unreduced` until both contributions have been added."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State) -> None:
        self.is_packed = is_packed(state)
        if self.is_packed:
            self.gate_up = ShardedPackedLinear(mesh, plan.children["gate_up"], child(state, "gate_up"))
        else:
            self.gate = ShardedLinear(mesh, plan.children["gate"], child(state, "gate"))
            self.up = ShardedLinear(mesh, plan.children["up"], child(state, "up"))
        self.down = TypedRowLinear(mesh, plan.children["down"], child(state, "down"))

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        x_BSD = reshard(x_BSD, P(None, None, None, reduced={"tp"}))
        if self.is_packed:
            gate_up = self.gate_up(x_BSD)  # [B, S, 2, F@tp]
            return self.down(gated(gate_up[:, :, 0], gate_up[:, :, 1]))
        return self.down(gated(self.gate(x_BSD), self.up(x_BSD)))  # [B, S, F@tp]


# -------------------------------------------------------------------------------------------------------- manual


class ManualSwiglu(nnx.Module):
    """Per-device code: f once for gate and up, g at the output, or their sequence-parallel counterparts."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State) -> None:
        self.plan, self.is_packed = plan, is_packed(state)
        if self.is_packed:
            self.gate_up = ShardedPackedLinear(mesh, plan.children["gate_up"], child(state, "gate_up"))
        else:
            self.gate = ShardedLinear(mesh, plan.children["gate"], child(state, "gate"))
            self.up = ShardedLinear(mesh, plan.children["up"], child(state, "up"))
        self.down = ShardedLinear(mesh, plan.children["down"], child(state, "down"))

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        layers = [*([self.gate_up] if self.is_packed else [self.gate, self.up]), self.down]
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, *(spec for layer in layers for spec in layer.specs)),
            out_specs=self.plan.y,
        )
        return per_device(x_BSD, *(parameter for layer in layers for parameter in values(layer)))

    def body(self, x: jax.Array, *params: jax.Array | None) -> jax.Array:
        *into, w_down, b_down = params
        x = gather_from_sp(x, "tp", dim=1) if self.plan.x == SEQUENCE_SHARDED else copy_to_tp(x, "tp")  # [B, S, D]
        if self.is_packed:
            gate_up = linears(x, *into)  # [B, S, 2, F/tp]
            h = gated(gate_up[:, :, 0], gate_up[:, :, 1])  # [B, S, F/tp]
        else:
            h = gated(linear(x, *into[:2]), linear(x, *into[2:]))  # [B, S, F/tp]
        y = linear(h, w_down)  # [B, S, D], partial
        if self.plan.y == SEQUENCE_SHARDED:
            y = reduce_scatter_to_sp(y, "tp", dim=1)  # [B, S/tp, D]
            return y if b_down is None else y + copy_to_tp(b_down, "tp")
        y = reduce_from_tp(y, "tp")  # [B, S, D]
        return y if b_down is None else y + b_down


# The state by name, in sizes: state.py.
DOWN = {"down.w": "F D", "down.b?": "D"}
PACKED = {"gate_up.w": "D 2 F", "gate_up.b?": "2 F", **DOWN}
SEPARATE = {"gate.w": "D F", "gate.b?": "F", "up.w": "D F", "up.b?": "F", **DOWN}

STYLES = {"auto": AutoSwiglu, "typed": TypedSwiglu, "manual": ManualSwiglu}


def build(mesh: Mesh, style: str, plan: Plan, state: State) -> nnx.Module:
    """The layer in one of the three styles; `state`: the global gate.w and up.w [D, F], or gate_up.w [D, 2, F],
    down.w [F, D], any biases.
    """
    check_plan(plan, PLANS)
    check_state(state, PACKED if is_packed(state) else SEPARATE)

    return STYLES[style](mesh, plan, state)
