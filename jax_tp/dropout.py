"""Dropout by global position: y = x / (1 - rate) where an element is kept, else 0, as a function of its position.

    B batch   S, T sequence   D features   H heads   tp devices on the axis "tp"

                       replicated   feature_parallel   sequence_parallel   head_parallel
    x, y per device    [B, S, D]    [B, S, D/tp]       [B, S/tp, D]        [H/tp, B, S, T]
    forward, backward  no collective

    key                threefry((seed, layer), (step, 0))          one per call of a layer
    bits_i             threefry(key, (row_i, column_i))[0]         32 bits
    kept_i             bits_i >= rate * 2^32

column is an element's index in the last dim of the global tensor, row its row-major index in all dims before it. Each
device computes the mask of its own elements, so the masks are bitwise the same at every tp degree, in every layout and
in both frameworks. The frameworks' own generators do not achieve this: DTensor's masks change with tp and, on CPU
meshes, are the same on every shard; JAX's do not depend on the sharding but differ from PyTorch's.
The generator is Threefry-2x32 with 20 rounds, as in JAX, written in integer operations: 120 per element, which eager
PyTorch launches one by one. `step` is an input, so that a compiled step does not change; give each microbatch its own.
Without a step, as in evaluation, nothing is dropped.

Sources: Srivastava et al. 2014, "Dropout"; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import axis_index, axis_size, broadcasted_iota, with_sharding_constraint
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import map_shards
from jax_tp.layouts import Plan, State
from jax_tp.linear import FEATURES_SHARDED, REPLICATED, SEQUENCE_SHARDED

STEP = {"step": P()}
HEADS_SHARDED = P("tp", None, None, None)

PLANS = {
    "replicated": Plan(x=REPLICATED, y=REPLICATED, inputs=STEP),
    "feature_parallel": Plan(x=FEATURES_SHARDED, y=FEATURES_SHARDED, inputs=STEP),
    "sequence_parallel": Plan(x=SEQUENCE_SHARDED, y=SEQUENCE_SHARDED, inputs=STEP),
    "head_parallel": Plan(x=HEADS_SHARDED, y=HEADS_SHARDED, inputs=STEP),
}

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Draw:
    """The rate of a dropout layer and the key of its masks."""

    rate: float
    seed: int
    layer: int  # number of the dropout layer in the model


def make_draw(rate: float, seed: int, layer: int) -> Draw | None:
    """A Draw, or None for rate 0. Raises ValueError for a rate outside [0, 1) or a key that does not fit 32 bits."""
    if not 0 <= rate < 1:
        raise ValueError(f"drop rate {rate}: expected 0 <= rate < 1")
    for name, number in (("seed", seed), ("layer", layer)):
        if not 0 <= number <= WORD:
            raise ValueError(f"{name}={number}: expected a number of 32 bits, 0 to {WORD}")
    return Draw(rate, seed, layer) if rate else None


def check_inputs(inputs: Mapping[str, np.ndarray], **options: Any) -> None:
    """Raises ValueError for a step that does not fit 32 bits; runs on the host."""
    if not 0 <= inputs["step"] <= WORD:
        raise ValueError(f"step={inputs['step']}: expected a number of 32 bits, 0 to {WORD}")


Word = jax.Array  # uint32; overflow wraps


def threefry(key: tuple[Word, Word], counter: tuple[Word, Word]) -> tuple[Word, Word]:
    """Threefry-2x32-20: two words of random bits from the key and the counter."""
    keys = (*key, key[0] ^ key[1] ^ np.uint32(PARITY))
    left, right = counter[0] + keys[0], counter[1] + keys[1]
    for i in range(5):
        for bits in ROTATIONS[i % 2]:
            left = left + right
            right = (right << bits | right >> (32 - bits)) ^ left
        left, right = left + keys[(i + 1) % 3], right + keys[(i + 2) % 3] + np.uint32(i + 1)
    return left, right


def positions(x: jax.Array, dim: int | None, axis: str | None) -> tuple[jax.Array, jax.Array]:
    """Global row and column of each element of x, which is this device's shard along `dim`; both shaped like x."""
    sharding = jax.typeof(x).sharding
    is_typed = AxisType.Explicit in sharding.mesh.axis_types
    index = rows = jnp.uint32(0)
    for i, size in enumerate(x.shape):
        index = broadcasted_iota(jnp.uint32, x.shape, i, out_sharding=sharding if is_typed else None)
        whole = size
        if i == dim and axis is not None:
            index, whole = index + jnp.uint32(axis_index(axis) * size), size * axis_size(axis)
        if i < x.ndim - 1:
            rows = rows * np.uint32(whole) + index
    return rows, index


def kept(x: jax.Array, step: jax.Array, draw: Draw, dim: int | None = None, axis: str | None = None) -> jax.Array:
    """The mask: whether each element of x is kept. XLA shards that of a global array; a shard needs `dim`, `axis`."""
    key = threefry((jnp.uint32(draw.seed), jnp.uint32(draw.layer)), (step.astype(jnp.uint32), jnp.uint32(0)))
    bits, _ = threefry(key, positions(x, dim, axis))
    return bits >= np.uint32(round(draw.rate * 2**32))


def dropout(
    x: jax.Array,
    step: jax.Array | None,
    draw: Draw | None,
    dim: int | None = None,
    axis: str | None = None,
) -> jax.Array:
    """x with dropped elements set to 0 and the others divided by (1 - rate), in float32 for bfloat16.

    dim, axis: if x is a local shard, the dim that is sharded and the mesh axis that shards it.
    """
    if draw is None or step is None:
        return x
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32)) * (1 / (1 - draw.rate))
    return jnp.where(kept(x, step, draw, dim, axis), wide, 0).astype(x.dtype)


# --------------------------------------------------------------------------------------------------------- typed


class TypedDropout(nnx.Module):
    """The mask has the type of x."""

    def __init__(self, mesh: Mesh, plan: Plan, draw: Draw | None) -> None:
        self.plan, self.draw = plan, draw

    def __call__(self, x: jax.Array, step: jax.Array | None) -> jax.Array:
        return dropout(x, step, self.draw)


# ---------------------------------------------------------------------------------------------------------- auto


class AutoDropout(TypedDropout):
    """The compiler sees the mask of a global array that is sharded, and each device computes its shard of it.

    The constraint on y makes it so: before a layer that needs all of y, XLA would gather the mask as well as x.
    """

    def __call__(self, x: jax.Array, step: jax.Array | None) -> jax.Array:
        y = super().__call__(x, step)
        return y if step is None else with_sharding_constraint(y, self.plan.y)


# -------------------------------------------------------------------------------------------------------- manual


class ManualDropout(TypedDropout):
    """`body` is the per-device code; it computes the global positions of this device's elements."""

    def __call__(self, x: jax.Array, step: jax.Array | None) -> jax.Array:
        if step is None:
            return x
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, self.plan.inputs["step"]),
            out_specs=self.plan.y,
        )
        return per_device(x, step)

    def body(self, x: jax.Array, step: jax.Array) -> jax.Array:
        dim = self.plan.x.index("tp") if "tp" in self.plan.x else None
        return dropout(x, step, self.draw, dim, "tp")


STYLES = {"auto": AutoDropout, "typed": TypedDropout, "manual": ManualDropout}


def build(mesh: Mesh, style: str, plan: Plan, state: State, rate: float, seed: int, layer: int) -> nnx.Module:
    """The layer in one of the three styles; `state` is empty. Raises ValueError as `make_draw` does."""
    return STYLES[style](mesh, plan, make_draw(rate, seed, layer))
