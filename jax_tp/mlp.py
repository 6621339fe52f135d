"""Megatron's MLP, a column- and a row-parallel linear: y = act(x w_up + b_up) w_down + b_down.

    B batch   S sequence   D features   F hidden features   tp devices on the axis "tp"

                           megatron              sequence_parallel
    x_BSD per device       [B, S, D]             [B, S/tp, D]
    w_up_DF per device     [D, F/tp]             [D, F/tp]
    h_BSF per device       [B, S, F/tp]          [B, S, F/tp]
    w_down_FD per device   [F/tp, D]             [F/tp, D]
    y_BSD per device       [B, S, D]             [B, S/tp, D]
    forward                all-reduce y_BSD      all-gather x_BSD, reduce-scatter y_BSD
    backward               all-reduce dx_BSD     all-gather dy_BSD, reduce-scatter dx_BSD, all-reduce db_down_D

A column-parallel linear followed by a row-parallel one needs no collective in between: the hidden features stay where
they are, and the activation and its dropout are elementwise, so that each device applies them to its own features.
The gathered x, [B, S, D], is saved for the gradient of w_up; Megatron-LM saves the shard and gathers it again in the
backward pass.

Sources: Megatron-LM, https://arxiv.org/abs/1909.08053, section 3, figure 3a; sequence parallelism,
https://arxiv.org/abs/2205.05198, section 4.2.2, figure 6.
"""

from __future__ import annotations

from functools import partial

import jax
from flax import nnx
from jax.lax import with_sharding_constraint
from jax.nn import gelu, relu
from jax.sharding import Mesh
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
    TypedColumnLinear,
    TypedRowLinear,
    linear,
    values,
)
from jax_tp.state import check_plan, check_state

PLANS = {
    "megatron": Plan(
        x=REPLICATED,
        y=REPLICATED,
        inputs=STEP,
        children={"up": LINEAR["column_parallel"], "down": LINEAR["row_parallel"]},
    ),
    "sequence_parallel": Plan(
        x=SEQUENCE_SHARDED,
        y=SEQUENCE_SHARDED,
        inputs=STEP,
        children={"up": LINEAR["column_sequence_parallel"], "down": LINEAR["row_sequence_parallel"]},
    ),
}

# GELU is the tanh approximation by default in JAX and exact in PyTorch: always say which.
ACTIVATIONS = {
    "gelu_erf": partial(gelu, approximate=False),
    "gelu_tanh": partial(gelu, approximate=True),
    "relu": relu,
}


# ---------------------------------------------------------------------------------------------------------- auto


class AutoMlp(nnx.Module):
    """Two linears whose parameters carry their shardings; the compiler shards everything in between."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, activation: str, draw: Draw | None) -> None:
        self.up = AutoColumnLinear(mesh, plan.children["up"], child(state, "up"))
        self.down = AutoRowLinear(mesh, plan.children["down"], child(state, "down"))
        self.plan, self.act, self.draw = plan, ACTIVATIONS[activation], draw

    def __call__(self, x_BSD: jax.Array, step: jax.Array | None = None) -> jax.Array:
        # The constraint applies to the gradient too: backward, the partial gradients of x are all-reduced.
        x_BSD = with_sharding_constraint(x_BSD, self.plan.x)
        return self.down(dropout(self.act(self.up(x_BSD)), step, self.draw))


# --------------------------------------------------------------------------------------------------------- typed


class TypedMlp(nnx.Module):
    """An elementwise activation keeps the type [B, S, F@tp], so nothing is resharded in between.

    Nor for x: the gradient of a replicated x must be replicated too, so it is all-reduced where it is computed.
    """

    def __init__(self, mesh: Mesh, plan: Plan, state: State, activation: str, draw: Draw | None) -> None:
        self.up = TypedColumnLinear(mesh, plan.children["up"], child(state, "up"))
        self.down = TypedRowLinear(mesh, plan.children["down"], child(state, "down"))
        self.act, self.draw = ACTIVATIONS[activation], draw

    def __call__(self, x_BSD: jax.Array, step: jax.Array | None = None) -> jax.Array:
        return self.down(dropout(self.act(self.up(x_BSD)), step, self.draw))


# -------------------------------------------------------------------------------------------------------- manual


class ManualMlp(nnx.Module):
    """Per-device code for the whole MLP: f at the input, g at the output, or their sequence-parallel counterparts."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, activation: str, draw: Draw | None) -> None:
        self.plan = plan
        self.up = ShardedLinear(mesh, plan.children["up"], child(state, "up"))
        self.down = ShardedLinear(mesh, plan.children["down"], child(state, "down"))
        self.act, self.draw = ACTIVATIONS[activation], draw

    def __call__(self, x_BSD: jax.Array, step: jax.Array | None = None) -> jax.Array:
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, *self.up.specs, *self.down.specs, P()),
            out_specs=self.plan.y,
        )
        return per_device(x_BSD, *values(self.up), *values(self.down), step)

    def body(
        self,
        x: jax.Array,
        w_up: jax.Array,
        b_up: jax.Array | None,
        w_down: jax.Array,
        b_down: jax.Array | None,
        step: jax.Array | None,
    ) -> jax.Array:
        x = gather_from_sp(x, "tp", dim=1) if self.plan.x == SEQUENCE_SHARDED else copy_to_tp(x, "tp")  # [B, S, D]
        h = self.act(linear(x, w_up, b_up))  # [B, S, F/tp]
        h = dropout(h, step, self.draw, 2, "tp")
        y = linear(h, w_down)  # [B, S, D], partial
        if self.plan.y == SEQUENCE_SHARDED:
            y = reduce_scatter_to_sp(y, "tp", dim=1)  # [B, S/tp, D]
            return y if b_down is None else y + copy_to_tp(b_down, "tp")
        y = reduce_from_tp(y, "tp")  # [B, S, D]
        return y if b_down is None else y + b_down


# The state by name, in sizes: state.py.
SHAPES = {"up.w": "D F", "up.b?": "F", "down.w": "F D", "down.b?": "D"}

STYLES = {"auto": AutoMlp, "typed": TypedMlp, "manual": ManualMlp}


def build(
    mesh: Mesh,
    style: str,
    plan: Plan,
    state: State,
    activation: str = "gelu_erf",
    drop_rate: float = 0.0,
    seed: int = 0,
    layer: int = 0,
) -> nnx.Module:
    """The MLP in one of the three styles; `state`: the global up.w [D, F], down.w [F, D], any biases.

    drop_rate: of the dropout on the hidden activations, active when a `step` is given; seed, layer: its key.
    Raises ValueError as `make_draw` does.
    """
    check_plan(plan, PLANS)
    check_state(state, SHAPES)
    return STYLES[style](mesh, plan, state, activation, make_draw(drop_rate, seed, layer))
