"""Latitude-weighted error on the grid, of a field predicted in patches with sharded features: latitude_error.py.

B batch   C channels   I latitudes   J longitudes   P side of a patch   T = I/P * J/P tokens   F = C*P*P
X by Y devices on the axes "x" and "y"

                       grid                exchanged
x_BTF a device         [B/X, T, F/Y]       [B/Y, T, F/X]     the prediction, as the grid's linears return it
truth_BCIJ a device    [B/X, C, I, J]      [B/Y, C, I, J]    data: no gradient
y                      []                  []                float32 for bfloat16 predictions
forward                all-reduce of a scalar over all devices
backward               no collective
"""

from __future__ import annotations

import jax
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import map_shards
from jax_tp.grid.linear import BLOCK, EXCHANGED
from jax_tp.grid.product import axes_of
from jax_tp.latitude_error import LatitudeError
from jax_tp.layouts import Plan, State

PLANS = {
    "grid": Plan(
        x=BLOCK,
        y=P(),
        inputs={"truth": P("x", None, None, None)},
        constants=("truth",),
    ),
    "exchanged": Plan(
        x=EXCHANGED,
        y=P(),
        inputs={"truth": P("y", None, None, None)},
        constants=("truth",),
    ),
}


# -------------------------------------------------------------------------------------------------------- manual


class ManualGridLatitudeError(LatitudeError):
    """`body` is the per-device code, on this device's features of its fields."""

    def __call__(self, x_BTF: jax.Array, truth_BCIJ: jax.Array) -> jax.Array:
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, self.plan.inputs["truth"]),
            out_specs=self.plan.y,
        )
        return per_device(x_BTF, truth_BCIJ)

    def body(self, x: jax.Array, truth: jax.Array) -> jax.Array:
        rows, columns = axes_of(self.plan.x)
        own = self.weighted_squares(x, truth, columns)
        return lax.psum(own, ("x", "y")) / (truth.size * lax.axis_size(rows))


STYLES = {"manual": ManualGridLatitudeError}


def build(mesh: Mesh, style: str, plan: Plan, state: State, patch: int) -> nnx.Module:
    """The layer; `state` is empty."""
    return STYLES[style](mesh, plan, patch)
