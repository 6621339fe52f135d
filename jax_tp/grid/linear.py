"""Linear layer on the grid: y = x w + b, with the weight split along both dims.

    B batch   S sequence   D features in   F features out   X by Y devices on the axes "x" and "y"

                       summa, cannon, gathered     stationary          stationary_exchanged
    x_BSD per device   [B/X, S, D/Y]               [B/Y, S, D/X]       [B/X, S, D/Y]
    w_DF per device    [D/X, F/Y]                  [D/X, F/Y]          [D/Y, F/X]
    b_F per device     [F/Y]                       [F/Y]               [F/X]
    y_BSF per device   [B/X, S, F/Y]               [B/X, S, F/Y]       [B/Y, S, F/X]

The product and its collectives are those of matmul.py with M = B S, K = D and N = F. The bias is the same for all
tokens, which are sharded over one axis, so its gradient is summed over that axis.

    backward         all-reduce db_F over x, payload F/Y; `stationary_exchanged`: over y, payload F/X

Several linears of the same x are computed as one product: each device concatenates its columns of their weights, and x
is sent once. (The concatenated global weight, with its columns in another order than in a checkpoint, is never formed.)

Where `stationary` and `stationary_exchanged` alternate, activations alternate between two layouts and no weight moves.

Sources: Optimus, https://arxiv.org/abs/2104.05343 (it keeps biases on one row of the grid and broadcasts
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

# By algorithm, the plans of two consecutive layers: into the hidden features and back.
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
    """This device's columns of several linears of the same x, concatenated; either all have a bias or none."""
    weights, biases = zip(*parts, strict=True)
    return jnp.concatenate(weights, 1), None if biases[0] is None else jnp.concatenate(biases)


def affine(x: jax.Array, w: jax.Array, b: jax.Array | None, grid: Grid) -> jax.Array:
    """x w + b on one device, from its blocks of x [B/R, S, D/C], w [D/R, F/C] and b [F/C] (R, C: product.py)."""
    y = multiply(x, w, grid)
    return y if b is None else y + copy_to_tp(b, grid.rows)


# -------------------------------------------------------------------------------------------------------- manual


class ManualGridLinear(GridLinear):
    """The product, then this device's block of the bias."""

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
