"""The collectives of 1D tensor parallelism, each with its transpose, which runs in the backward pass.

    forward                 backward            Megatron-LM's name
    copy_to_tp              all-reduce          f
    reduce_from_tp          identity            g
    gather_from_tp          split               gather_from_tensor_model_parallel_region
    split_to_tp             all-gather          scatter_to_tensor_model_parallel_region
    max_over_tp             none                part of vocab_parallel_cross_entropy
    gather_from_sp          reduce-scatter      gather_from_sequence_parallel_region
    reduce_scatter_to_sp    all-gather          reduce_scatter_to_sequence_parallel_region

All operate on per-device arrays, inside `shard_map`. A value is *invariant* (replicated) if every device of the axis
holds the same value and *varying* if each holds its own. `shard_map` tracks this in the type of each value (check_vma).
The transposes follow from this: the transpose of invariant -> varying is a sum over the axis.
`axis` is the name of the mesh axis.

Sources: Megatron-LM, https://arxiv.org/abs/1909.08053, section 3, and 2205.05198, section 4.2.2;
https://docs.jax.dev/en/latest/notebooks/shard_map.html
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax


def map_shards(body: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`jax.shard_map` over all axes; the body itself inside an outer shard_map (`hybrid.py`)."""
    mesh = jax.sharding.get_abstract_mesh()
    if set(mesh.manual_axes) == set(mesh.axis_names):
        return body
    return jax.shard_map(body, in_specs=in_specs, out_specs=out_specs)


def copy_to_tp(x: jax.Array, axis: str) -> jax.Array:
    """Invariant -> varying: no-op forward; all-reduce of the gradient backward (payload: x)."""
    return lax.pcast(x, axis, to="varying")


def reduce_from_tp(x: jax.Array, axis: str) -> jax.Array:
    """Varying -> invariant: all-reduce forward (payload: x); no-op backward."""
    return lax.psum(x, axis)


def max_over_tp(x: jax.Array, axis: str) -> jax.Array:
    """Varying -> invariant: all-reduce with max forward (payload: x). Not differentiable: x must be detached."""
    return lax.pmax(x, axis)


def gather_from_tp(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """Varying -> invariant: all-gather along `dim` forward (payload: the gathered x); a slice of the gradient."""
    return lax.all_gather(x, axis, axis=dim, tiled=True, to="invarying")


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def split_to_tp(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """Invariant -> varying: a slice along `dim` forward; all-gather of the gradient backward (payload: x).

    JAX's own transpose of a slice at `axis_index` is an all-reduce of zero-padded parts, twice the bytes.
    """
    size = x.shape[dim] // lax.axis_size(axis)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axis) * size, size, dim)


def _split_forward(x: jax.Array, axis: str, dim: int) -> tuple[jax.Array, None]:
    return split_to_tp(x, axis, dim), None


def _split_backward(axis: str, dim: int, _: None, grad: jax.Array) -> tuple[jax.Array]:
    return (gather_from_tp(grad, axis, dim),)


split_to_tp.defvjp(_split_forward, _split_backward)


def gather_from_sp(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """Varying -> varying: all-gather along `dim` forward, reduce-scatter of the gradient backward (payload: all of x).

    Unlike after gather_from_tp, each device uses the gathered x in a different computation, so their gradients add up.
    """
    return lax.all_gather(x, axis, axis=dim, tiled=True)


def reduce_scatter_to_sp(x: jax.Array, axis: str, dim: int) -> jax.Array:
    """Varying -> varying: reduce-scatter along `dim` forward, all-gather of the gradient backward (payload: x)."""
    return lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True)
