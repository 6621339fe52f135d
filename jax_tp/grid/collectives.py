"""The collectives that only the grid uses; per-device arrays, inside `shard_map`.

    broadcast         one device of the axis sends its x to the others
    shift             every device of the axis sends its x to the one `by` places before it in the ring
    skew              a shift whose distance depends on the device's position along the other axis
    reduce_scatter    every device gets its shard of the sum of all devices' x

XLA schedules their starts and ends; `in_order` keeps it from starting all of them at once.
They have no transposes: the algorithms of the grid define their own gradients.

`lax.pbroadcast` is the HLO CollectiveBroadcast, which XLA implements for GPUs only. On CPUs, and only there, x is
summed with zeros by an all-reduce, which moves twice the bytes of a broadcast.

Source: https://docs.jax.dev/en/latest/jax.lax.html#parallel-operators
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def broadcast(x: jax.Array, axis: str, source: int) -> jax.Array:
    """x of the device `source` of the axis, on all of them (payload: x); on the others, x only gives the shape."""

    def collective_broadcast(x: jax.Array) -> jax.Array:
        return lax.pbroadcast(x, axis, source)

    def sum_with_zeros(x: jax.Array) -> jax.Array:
        total = lax.psum(jnp.where(lax.axis_index(axis) == source, x, jnp.zeros_like(x)), axis)
        return lax.pcast(total, axis, to="varying")

    return lax.platform_dependent(x, cuda=collective_broadcast, default=sum_with_zeros)


def shift(x: jax.Array, axis: str, by: int) -> jax.Array:
    """The x of the device `by` places further along the ring (payload: x)."""
    size = lax.axis_size(axis)
    return lax.ppermute(x, axis, [(position, (position - by) % size) for position in range(size)])


def skew(x: jax.Array, axis: str, other: str, by: int, sign: int) -> jax.Array:
    """A shift by `by + sign * (position on the axis `other`)`, which differs from row to row (payload: x)."""
    size, rows = lax.axis_size(axis), lax.axis_size(other)
    first, second = axes = sorted((axis, other), key=jax.sharding.get_abstract_mesh().axis_names.index)
    strides = {first: lax.axis_size(second), second: 1}  # `ppermute` numbers devices in the order of the mesh

    def device(row: int, position: int) -> int:
        return row * strides[other] + position % size * strides[axis]

    pairs = [
        (device(row, position), device(row, position - by - sign * row))
        for row in range(rows)
        for position in range(size)
    ]
    return lax.ppermute(x, tuple(axes), pairs)


def reduce_scatter(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """This device's shard along `dim` of the sum of all devices' x (payload: x)."""
    return lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True)


def in_order(*values: Any) -> Any:
    """The same values, each available only when all are, so that their uses cannot be scheduled earlier."""
    return lax.optimization_barrier(values)
