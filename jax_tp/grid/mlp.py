"""MLP on the grid: y = act(x w_up + b_up) w_down + b_down; gated: y = (silu(x w_gate + b_gate) * (x w_up + b_up)) ...

    B batch   S sequence   D features   F hidden features   X by Y devices on the axes "x" and "y"

                              summa, cannon, gathered     stationary
    x_BSD per device          [B/X, S, D/Y]               [B/X, S, D/Y]
    w_up, w_gate per device   [D/X, F/Y]                  [D/Y, F/X]
    h_BSF per device          [B/X, S, F/Y]               [B/Y, S, F/X]
    w_down per device         [F/X, D/Y]                  [F/X, D/Y]
    y_BSD per device          [B/X, S, D/Y]               [B/X, S, D/Y]

Two linears (linear.py), whose collectives are the only ones: the activation is elementwise. Gate and up are a single
product with the two weights side by side, so x is sent once for both.

Sources: Optimus, https://arxiv.org/abs/2104.05343; Shazeer, https://arxiv.org/abs/2002.05202.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jax_tp.collectives import map_shards
from jax_tp.grid.linear import BLOCK, PAIRS, GridLinear, affine, side_by_side
from jax_tp.layouts import Plan, State, child
from jax_tp.linear import values
from jax_tp.mlp import ACTIVATIONS
from jax_tp.swiglu import gated

PLANS = {
    algorithm: Plan(x=BLOCK, y=BLOCK, children={"gate": into, "up": into, "down": out}, algorithm=algorithm)
    for algorithm, (into, out) in PAIRS.items()
}


# -------------------------------------------------------------------------------------------------------- manual


class ManualGridMlp(nnx.Module):
    """Per-device code for the whole MLP; it is gated if the state has a gate."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, activation: str, panel: int) -> None:
        self.plan = plan
        self.is_gated, self.act = activation == "swiglu", ACTIVATIONS.get(activation)
        if self.is_gated:
            self.gate = GridLinear(mesh, plan.children["gate"], child(state, "gate"), panel)
        self.up = GridLinear(mesh, plan.children["up"], child(state, "up"), panel)
        self.down = GridLinear(mesh, plan.children["down"], child(state, "down"), panel)

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        layers = [*([self.gate] if self.is_gated else []), self.up, self.down]
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, *(spec for layer in layers for spec in layer.specs)),
            out_specs=self.plan.y,
        )
        return per_device(x_BSD, *(parameter for layer in layers for parameter in values(layer)))

    def body(self, x: jax.Array, *params: jax.Array | None) -> jax.Array:
        *into, w_down, b_down = params
        w, b = side_by_side(list(zip(into[::2], into[1::2], strict=True)))
        h = affine(x, w, b, self.up.grid)  # [B/R, S, F/C]; gate and up: [B/R, S, 2*F/C]
        h = gated(*jnp.split(h, 2, -1)) if self.is_gated else self.act(h)
        return affine(h, w_down, b_down, self.down.grid)


STYLES = {"manual": ManualGridMlp}


def build(
    mesh: Mesh,
    style: str,
    plan: Plan,
    state: State,
    activation: str = "swiglu",
    panel: int = 0,
) -> nnx.Module:
    """The MLP; `state`: the global up.w [D, F], down.w [F, D], gate.w [D, F] if activation is "swiglu", any biases."""
    return STYLES[style](mesh, plan, state, activation, panel)
