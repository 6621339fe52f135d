"""Latitude-weighted mean squared error of a field that is predicted in patches with sharded features.

    B batch   C channels   I latitudes   J longitudes   P side of a patch   T = I/P * J/P tokens   F = C*P*P
    tp devices on the axis "tp"

    x_BTF per device       [B, T, F/tp]   the prediction, in patches
    truth_BCIJ per device  [B, C, I, J]   data: no gradient
    y                      []             float32 for bfloat16 predictions, as are all intermediate values

    y                      1 / (B C I J) Σ w_i (prediction - truth)²
    w_i                    cos(latitude_i) / mean_i cos(latitude_i),   latitude_i = 90 - (i + ½) 180 / I degrees
    forward                all-reduce of a scalar: y sums over F, which is sharded
    backward               no collective

On a latitude-longitude grid the circles of latitude shrink towards the poles; w_i gives equal areas equal weight.
The prediction is never gathered; the truth is cut into patches, and each device takes its features of them.

Source: WeatherBench, Rasp et al., https://arxiv.org/abs/2002.00469, the latitude-weighted RMSE.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh, reshard
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import map_shards, reduce_from_tp, split_to_tp
from jax_tp.layouts import Plan, State

PLANS = {
    "feature_parallel": Plan(
        x=P(None, None, "tp"), y=P(), inputs={"truth": P(None, None, None, None)}, constants=("truth",)
    ),
}


def cut_patches(x_BCIJ: jax.Array, patch: int) -> jax.Array:
    """[B, C, I, J] -> [B, T, F]: patches in row-major order, features in the order of Conv2d (channel, row, column).

    Raises ValueError for a patch that does not tile the grid.
    """
    B, C, I, J = x_BCIJ.shape
    check_patch(I, J, patch)
    cut = x_BCIJ.reshape(B, C, I // patch, patch, J // patch, patch).transpose(0, 2, 4, 1, 3, 5)
    return cut.reshape(B, (I // patch) * (J // patch), C * patch * patch)


def check_patch(num_rows: int, num_columns: int, patch: int) -> None:
    """Raises ValueError for a patch that does not tile the grid."""
    if num_rows % patch or num_columns % patch:
        raise ValueError(
            f"patch={patch} does not tile the grid of {num_rows} x {num_columns}: a divisor of both would work"
        )


def latitude_weights(num_rows: int) -> np.ndarray:
    """w_I in float64, for num_rows equal rows of cells from pole to pole."""
    latitudes = 90 - (np.arange(num_rows) + 0.5) * 180 / num_rows  # at the centres of the cells
    cosines = np.cos(np.deg2rad(latitudes))
    return cosines / cosines.mean()


class LatitudeError(nnx.Module):
    """The loss for patches of a given side; it has no parameters."""

    def __init__(self, mesh: Mesh, plan: Plan, patch: int) -> None:
        self.plan, self.patch = plan, patch

    def weigh(self, truth_BCIJ: jax.Array) -> np.ndarray:
        """The weight of every element of a field, [1, C, I, J]."""
        _, C, I, J = truth_BCIJ.shape
        return np.broadcast_to(latitude_weights(I)[:, None], (1, C, I, J))

    def weighted_squares(self, x: jax.Array, truth: jax.Array, axis: str) -> jax.Array:
        """The weighted sum of squares over this device's features: [B, T, F/tp], [B, C, I, J] -> []."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        weight = jnp.asarray(self.weigh(truth), x.dtype)  # [1, C, I, J]
        weight, own = (split_to_tp(cut_patches(field, self.patch), axis, dim=2) for field in (weight, truth))
        return (weight * jnp.square(x - own)).sum()


# --------------------------------------------------------------------------------------------------------- typed


class TypedLatitudeError(LatitudeError):
    """`reshard` slices truth and weights to this device's features; the sum over them is an all-reduce."""

    def __call__(self, x_BTF: jax.Array, truth_BCIJ: jax.Array) -> jax.Array:
        x_BTF = x_BTF.astype(jnp.promote_types(x_BTF.dtype, jnp.float32))
        weight_1CIJ = jnp.asarray(self.weigh(truth_BCIJ), x_BTF.dtype)
        weight_1TF, truth_BTF = (
            reshard(cut_patches(field, self.patch), self.plan.x) for field in (weight_1CIJ, truth_BCIJ)
        )
        return (weight_1TF * jnp.square(x_BTF - truth_BTF)).sum() / truth_BCIJ.size


# ---------------------------------------------------------------------------------------------------------- auto


class AutoLatitudeError(LatitudeError):
    """The compiler sees a sum over sharded features and shards truth and weights to match."""

    def __call__(self, x_BTF: jax.Array, truth_BCIJ: jax.Array) -> jax.Array:
        x_BTF = with_sharding_constraint(x_BTF, self.plan.x)
        x_BTF = x_BTF.astype(jnp.promote_types(x_BTF.dtype, jnp.float32))
        weight_1CIJ = jnp.asarray(self.weigh(truth_BCIJ), x_BTF.dtype)
        weight_1TF, truth_BTF = (cut_patches(field, self.patch) for field in (weight_1CIJ, truth_BCIJ))
        return (weight_1TF * jnp.square(x_BTF - truth_BTF)).sum() / truth_BCIJ.size


# -------------------------------------------------------------------------------------------------------- manual


class ManualLatitudeError(LatitudeError):
    """`body` is the per-device code, on this device's features."""

    def __call__(self, x_BTF: jax.Array, truth_BCIJ: jax.Array) -> jax.Array:
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, self.plan.inputs["truth"]),
            out_specs=self.plan.y,
        )
        return per_device(x_BTF, truth_BCIJ)

    def body(self, x: jax.Array, truth: jax.Array) -> jax.Array:
        return reduce_from_tp(self.weighted_squares(x, truth, "tp"), "tp") / truth.size


STYLES = {"auto": AutoLatitudeError, "typed": TypedLatitudeError, "manual": ManualLatitudeError}


def build(mesh: Mesh, style: str, plan: Plan, state: State, patch: int) -> nnx.Module:
    """The layer in one of the three styles; `state` is empty."""
    return STYLES[style](mesh, plan, patch)
