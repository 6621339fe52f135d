"""2D matrix product: Y = X W with all three split along both dims over a grid of devices.

    M rows (tokens)   K features in   N features out   X by Y devices on the axes "x" and "y"; device (x=i, y=j)

    x_MK per device  [M/X, K/Y]    block (i, j)
    w_KN per device  [K/X, N/Y]    block (i, j)
    y_MN per device  [M/X, N/Y]    block (i, j)

Forward and backward need three products: Y = X W, dX = dY W^T, dW = X^T dY; product.py has the algorithms. Payload per
device of each collective, in elements:

    plan           Y = X W                              dX = dY W^T                         dW = X^T dY
    summa          broadcast y: M/X K, x: K N/Y         broadcast x: K N/Y,                 broadcast y: M/X K,
                                                        reduce-scatter y: M/X K             reduce-scatter x: K N/Y
    cannon         permute y: M K/q, x: K N/q           the same                            the same
    gathered       all-gather y: M/X K, x: K N/Y        reduce-scatter y: M/X K             reduce-scatter x: K N/Y
    stationary     all-gather y: M K/X,                 all-gather x: M N/Y,                nothing
                   reduce-scatter x: M N/Y              reduce-scatter y: M K/X

In `stationary` neither w nor dw ever moves. Block (i, j) of w is multiplied by the columns K_i of X, so X is laid out
transposed, block (i, j) on device (x=j, y=i): gathered along y it becomes X[:, K_i]. The products are reduce-scattered
along x into rows. The next layer exchanges the roles of x and y.

`partitioner` only states the layouts of x, w and y; the framework chooses the collectives.

Sources: van de Geijn & Watts 1997 (SUMMA); Cannon 1969; Optimus, https://arxiv.org/abs/2104.05343; weight-stationary
in 2D: Pope et al., https://arxiv.org/abs/2211.05102, section 3.2.2.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_tp.grid.product import ALGORITHMS, grid_of, multiply
from jax_tp.layouts import Plan, State, place

# A mesh axis for each dim. Flax stores the kernel as [in, out]: K is dim 0, N is dim 1.
BLOCK, BLOCK_SWAPPED = P("x", "y"), P("y", "x")
WEIGHT = {"kernel": P("x", "y")}

PLANS = {
    "summa": Plan(x=BLOCK, y=BLOCK, params=WEIGHT, algorithm="summa"),
    "cannon": Plan(x=BLOCK, y=BLOCK, params=WEIGHT, algorithm="cannon"),
    "gathered": Plan(x=BLOCK, y=BLOCK, params=WEIGHT, algorithm="gathered"),
    "stationary": Plan(x=BLOCK_SWAPPED, y=BLOCK, params=WEIGHT, algorithm="stationary"),
    "partitioner": Plan(x=BLOCK, y=BLOCK, params=WEIGHT),
}


class ShardedWeight(nnx.Module):
    """The weight of the layers, laid out as the plan says."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, panel: int = 0) -> None:
        self.plan, self.panel = plan, panel
        self.kernel = nnx.Param(place(state["w"], mesh, plan.params["kernel"]))


# ---------------------------------------------------------------------------------------------------------- auto


class AutoPartitioner(ShardedWeight):
    """The compiler knows the layouts of x, w and y and inserts the collectives."""

    def __call__(self, x_MK: jax.Array) -> jax.Array:
        return with_sharding_constraint(jnp.dot(x_MK, self.kernel[...]), self.plan.y)


# --------------------------------------------------------------------------------------------------------- typed


class TypedPartitioner(ShardedWeight):
    """x and w are both sharded over K, by different axes, so the type of y has to be given."""

    def __call__(self, x_MK: jax.Array) -> jax.Array:
        return jnp.dot(x_MK, self.kernel[...], out_sharding=self.plan.y)


# -------------------------------------------------------------------------------------------------------- manual


class ManualProduct(ShardedWeight):
    """The per-device code of product.py, on the blocks that the plan assigns to the device."""

    def __call__(self, x_MK: jax.Array) -> jax.Array:
        per_device = jax.shard_map(
            self.body,
            in_specs=(self.plan.x, self.plan.params["kernel"]),
            out_specs=self.plan.y,
        )
        return per_device(x_MK, self.kernel[...])

    def body(self, x: jax.Array, w: jax.Array) -> jax.Array:
        return multiply(x, w, grid_of(self.plan, self.panel))


STYLES = {
    "auto": {"partitioner": AutoPartitioner},
    "typed": {"partitioner": TypedPartitioner},
    "manual": dict.fromkeys(ALGORITHMS, ManualProduct),
}


def build(mesh: Mesh, style: str, plan: Plan, state: State, **options: Any) -> nnx.Module:
    """The product with a weight in one of the styles; `state` holds the global w [K, N], `options` summa's `panel`."""
    return STYLES[style][plan.algorithm or "partitioner"](mesh, plan, state, **options)
