"""Linear layer on the grid: y = x w + b, with the weight split along both dims.

    B batch   S sequence   D features in   F features out   X by Y devices on the axes "x" and "y"

                       summa, cannon, gathered     stationary          stationary_exchanged
    x_BSD per device   [B/X, S, D/Y]               [B/Y, S, D/X]       [B/X, S, D/Y]
    w_DF per device    [D/X, F/Y]                  [D/X, F/Y]          [D/Y, F/X]
    b_F per device     [F/Y]                       [F/Y]               [F/X]
    y_BSF per device   [B/X, S, F/Y]               [B/X, S, F/Y]       [B/Y, S, F/X]

The product is that of matmul.py, of M = B S rows, K = D and N = F; so are its collectives. The bias is the same for all
tokens, which one axis shares out: its gradient is a sum over that axis.

    backward         all-reduce db_F over x, payload F/Y; `stationary_exchanged`: over y, payload F/X

Several linears of the same x are one product with their weights side by side: a device puts its own columns of each
together, and x is sent once. (The columns of the whole are then in another order than those of any one checkpoint, but
nobody sees the whole.)

Where `stationary` is followed by `stationary_exchanged`, or the other way round, activations alternate between two
layouts, and no weight ever moves.

Sources: Optimus, https://arxiv.org/abs/2104.05343, section 3.2 (it keeps biases on one row of the grid and broadcasts
them); Pope et al., https://arxiv.org/abs/2211.05102, section 3.2.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import copy_to_tp, map_shards
from jax_tp.grid.product import Grid, grid_of, multiply
from jax_tp.layouts import Plan, State, place
from jax_tp.linear import values

# A mesh axis for each dim. Flax stores the kernel as [in, out].
BLOCK, EXCHANGED = P("x", None, "y"), P("y", None, "x")
PARAMS = {"kernel": P("x", "y"), "bias": P("y")}
PARAMS_EXCHANGED = {"kernel": P("y", "x"), "bias": P("x")}

PLANS = {
    "summa": Plan(x=BLOCK, y=BLOCK, params=PARAMS, algorithm="summa"),
    "cannon": Plan(x=BLOCK, y=BLOCK, params=PARAMS, algorithm="cannon"),
    "gathered": Plan(x=BLOCK, y=BLOCK, params=PARAMS, algorithm="gathered"),
    "stationary": Plan(x=EXCHANGED, y=BLOCK, params=PARAMS, algorithm="stationary"),
    "stationary_exchanged": Plan(x=BLOCK, y=EXCHANGED, params=PARAMS_EXCHANGED, algorithm="stationary"),
}

# The plans of two layers in a row, into hidden features and back, by algorithm.
PAIRS = {
    algorithm: (PLANS["stationary_exchanged" if algorithm == "stationary" else algorithm], PLANS[algorithm])
    for algorithm in ("summa", "cannon", "gathered", "stationary")
}

Affine = tuple[jax.Array, jax.Array | None]  # w as Flax stores it, and b


class GridLinear(nnx.Module):
    """The parameters, laid out as the plan says."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, panel: int = 0) -> None:
        self.plan, self.grid = plan, grid_of(plan, panel)
        self.kernel = nnx.Param(place(state["w"], mesh, plan.params["kernel"]))
        self.bias = nnx.Param(place(state["b"], mesh, plan.params["bias"])) if "b" in state else None
        self.specs = plan.params["kernel"], plan.params["bias"]


def side_by_side(parts: Sequence[Affine]) -> Affine:
    """The own columns of several linears of the same x, as those of one; all have a bias or none has."""
    weights, biases = zip(*parts, strict=True)
    return jnp.concatenate(weights, 1), None if biases[0] is None else jnp.concatenate(biases)


def affine(x: jax.Array, w: jax.Array, b: jax.Array | None, grid: Grid) -> jax.Array:
    """x w + b of one device: its blocks of x [B/R, S, D/C] and w [D/R, F/C], its b [F/C] (R, C: product.py)."""
    y = multiply(x, w, grid)
    return y if b is None else y + copy_to_tp(b, grid.rows)


# -------------------------------------------------------------------------------------------------------- manual


class ManualGridLinear(GridLinear):
    """The product, then the bias on every device's own block."""

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, *self.specs),
            out_specs=self.plan.y,
        )
        return per_device(x_BSD, *values(self))

    def body(self, x: jax.Array, w: jax.Array, b: jax.Array | None) -> jax.Array:
        return affine(x, w, b, self.grid)


STYLES = {"manual": ManualGridLinear}


def build(mesh: Mesh, style: str, plan: Plan, state: State, panel: int = 0) -> nnx.Module:
    """The layer; `state` holds the global w [D, F] and, if the layer has one, b [F]; panel: of D, for summa."""
    return STYLES[style](mesh, plan, state, panel)
