"""Layer norm and RMS norm on the grid: the features are sharded over y, so the statistics of a token are sums over y.

    B batch   S sequence   D features   X by Y devices on the axes "x" and "y"

    x_BSD per device   [B/X, S, D/Y]
    y_BSD per device   [B/X, S, D/Y]
    scale_D, b_D       [D/Y]

    layer norm         mean = Σ_D x / D,   var = Σ_D (x - mean)² / D,   y = (x - mean) / sqrt(var + eps) * scale + b
    RMS norm           the same with mean 0 and no b

                       layer norm                                    RMS norm
    forward            all-reduce y: Σ x and Σ (x - mean)²,          all-reduce y: Σ x²,
                       B/X S each                                    B/X S
    backward           all-reduce y: the gradients of both,          all-reduce y: its gradient, B/X S
                       B/X S each
                       all-reduce x: dscale and db, D/Y each         all-reduce x: dscale, D/Y

Each sum over y is used by all devices of the row, each for its own features, so its gradient is a sum over y again.
Computing Σ x and Σ x² together would save one all-reduce, but mean(x²) - mean² cancels where the mean
is large. The sums are in float32 for bfloat16. The gradients of scale and b are sums over tokens, which are sharded
over x.

Sources: Optimus, https://arxiv.org/abs/2104.05343; Ba et al., https://arxiv.org/abs/1607.06450; Zhang &
Sennrich, https://arxiv.org/abs/1910.07467.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import copy_to_tp, map_shards, reduce_from_tp
from jax_tp.grid.linear import BLOCK
from jax_tp.layouts import Plan, State, place

COLUMNS = P("y")

PLANS = {
    "grid": Plan(x=BLOCK, y=BLOCK, params={"scale": COLUMNS, "bias": COLUMNS}),
}


def mean_over(x: jax.Array, axis: str) -> jax.Array:
    """The mean of every token over its features, which are sharded over the axis: [B, S, D/Y] -> [B, S, 1]."""
    total = reduce_from_tp(x.sum(-1, keepdims=True), axis)
    return copy_to_tp(total, axis) / (x.shape[-1] * lax.axis_size(axis))


def layer_norm(x: jax.Array, scale: jax.Array, b: jax.Array | None, eps: float, axis: str) -> jax.Array:
    """Layer norm of every token, on this device's shard of its features."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - mean_over(wide, axis)
    y = centred * lax.rsqrt(mean_over(jnp.square(centred), axis) + eps) * scale
    return (y if b is None else y + b).astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, b: jax.Array | None, eps: float, axis: str) -> jax.Array:
    """RMS norm of every token, on this device's shard of its features; it has no b."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = wide * lax.rsqrt(mean_over(jnp.square(wide), axis) + eps) * scale
    return y.astype(x.dtype)


NORMS = {"layer_norm": layer_norm, "rms_norm": rms_norm}


# -------------------------------------------------------------------------------------------------------- manual


class ManualGridNorm(nnx.Module):
    """Per-device code; f over x on the parameters, as the tokens are sharded over x."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, kind: str, eps: float) -> None:
        self.plan, self.norm, self.eps = plan, NORMS[kind], eps
        self.scale = nnx.Param(place(state["scale"], mesh, plan.params["scale"]))
        self.bias = nnx.Param(place(state["b"], mesh, plan.params["bias"])) if "b" in state else None
        self.specs = plan.params["scale"], plan.params["bias"]

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, *self.specs),
            out_specs=self.plan.y,
        )
        return per_device(x_BSD, self.scale[...], None if self.bias is None else self.bias[...])

    def body(self, x: jax.Array, scale: jax.Array, b: jax.Array | None) -> jax.Array:
        scale = copy_to_tp(scale, "x")  # [D/Y]
        b = None if b is None else copy_to_tp(b, "x")  # [D/Y]
        return self.norm(x, scale, b, self.eps, "y")


STYLES = {"manual": ManualGridNorm}


def build(mesh: Mesh, style: str, plan: Plan, state: State, kind: str, eps: float) -> nnx.Module:
    """The layer; `state`: scale [D] and, for a layer norm that has one, b [D]."""
    return STYLES[style](mesh, plan, state, kind, eps)
