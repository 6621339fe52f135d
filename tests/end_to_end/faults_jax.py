"""The faults of faulty_worker.py, as replacements of names in jax_tp.

`replacements(fault)` is {name: original -> replacement}; names are looked up in the modules that it lists.
A missing all-reduce cannot be written plainly: the types of `shard_map` refuse a varying value where an invariant one
is due. So the sum is there, and the parts of all devices but the first are missing from it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P

from jax_tp.layouts import named_parameters

Replace = Callable[[Any], Any]


def of_first(x: jax.Array, axis: str) -> jax.Array:
    return jnp.where(lax.axis_index(axis) == 0, x, 0)


def only_first_summed(original: Any) -> Any:
    return lambda x, axis: original(of_first(x, axis), axis)


def only_first_gradient(original: Any) -> Any:
    @partial(jax.custom_vjp, nondiff_argnums=(1,))
    def copy(x, axis):  # type: ignore[no-untyped-def]
        return original(x, axis)

    copy.defvjp(lambda x, axis: (original(x, axis), None), lambda axis, _, g: (lax.psum(of_first(g, axis), axis),))
    return copy


def twice(original: Any) -> Any:
    return lambda x, axis: original(lax.pcast(original(x, axis), axis, to="varying") / lax.axis_size(axis), axis)


def summed_backward_too(original: Any) -> Any:
    """The transpose of psum is taken for a psum: so it is inside `shard_map(check_vma=False)`."""

    @partial(jax.custom_vjp, nondiff_argnums=(1,))
    def reduce(x, axis):  # type: ignore[no-untyped-def]
        return original(x, axis)

    def transpose(axis, _, grad):  # type: ignore[no-untyped-def]
        varying = partial(lax.pcast, axis_name=axis, to="varying")
        return (varying(lax.psum(varying(grad), axis)),)

    reduce.defvjp(lambda x, axis: (original(x, axis), None), transpose)
    return reduce


def from_the_next(original: Any) -> Any:
    return lambda x, axis, source: original(x, axis, (source + 1) % lax.axis_size(axis))


def but_over_x(original: Any) -> Any:
    return lambda x, axis: (only_first_gradient(original) if axis == "x" else original)(x, axis)


def with_bias_before(original: Any) -> Any:
    """g after the bias, as if the bias were part of the product."""

    class Wrong(original):
        def body(self, x, w, b):  # type: ignore[no-untyped-def]
            return lax.psum(jnp.dot(x, w) + b, "tp")

    return Wrong


def swapped(original: Any) -> Any:
    """The first and second shard of every sharded parameter change places."""

    def place(array, mesh, spec):  # type: ignore[no-untyped-def]
        if len(array.shape) <= 2 and "tp" in spec and isinstance(array, np.ndarray):
            dim = spec.index("tp")
            parts = np.split(array, mesh.size, dim)
            parts[0], parts[1] = parts[1], parts[0]
            array = np.concatenate(parts, dim)
        return original(array, mesh, spec)

    return place


def replicated(original: Any) -> Any:
    """Weights are placed whole on every device, x and y as they should be."""

    def place(array, mesh, spec):  # type: ignore[no-untyped-def]
        return original(array, mesh, P(None, None) if len(array.shape) == 2 else spec)

    return place


def cut_as_one(original: Any) -> Any:
    """Of weights packed one after the other, [D, C, F], each device takes the same share of all C F columns."""

    def place(array, mesh, spec):  # type: ignore[no-untyped-def]
        if isinstance(array, np.ndarray) and spec == P(None, None, "tp"):
            shards = np.split(array.reshape(len(array), -1), mesh.size, 1)
            array = np.concatenate([shard.reshape(*array.shape[:2], -1) for shard in shards], 2)
        return original(array, mesh, spec)

    return place


def other_on_rank_1(original: Any) -> Any:
    def place(array, mesh, spec):  # type: ignore[no-untyped-def]
        placed = original(array, mesh, spec)
        if not (isinstance(array, np.ndarray) and array.ndim == 3):
            return placed
        shards = [
            jax.device_put(np.asarray(shard.data) + (shard.device == mesh.devices.flat[1]), shard.device)
            for shard in placed.addressable_shards
        ]
        return jax.make_array_from_single_device_arrays(placed.shape, placed.sharding, shards)

    return place


def narrower_target(original: Any) -> Any:
    """The output is compared with a target of less precision, so y comes back narrower."""

    def step(*given):  # type: ignore[no-untyped-def]
        done = original(*given)
        return done._replace(y=done.y.astype(jnp.float32))

    return step


def of_a_copy(original: Any) -> Any:
    """The update goes to a copy of the module, and is lost."""
    return lambda module, *rest: original(nnx.clone(module), *rest)


def summed_over_all(original: Any) -> Any:
    """The squares of every gradient are summed over the devices, whether it is sharded or not."""

    def norm(grads):  # type: ignore[no-untyped-def]
        times = {"down.bias": jax.sharding.get_abstract_mesh().size}
        squares = {name: jnp.square(grad.get_value()).sum() for name, grad in named_parameters(grads).items()}
        return jnp.sqrt(sum(times.get(name, 1) * square for name, square in squares.items()))

    return norm


def by_local_place(original: Any) -> Any:
    """Each device draws the mask of its shard as if that were the whole: all shards have the same."""
    return lambda x, dim, axis: original(x, None, None)


def tanh_activation(original: dict[str, Any]) -> dict[str, Any]:
    return {**original, "gelu_erf": partial(jax.nn.gelu, approximate=True)}


def styles_with(name: str, change: Replace) -> Replace:
    """Replace one class in a STYLES table of pairs or of classes."""

    def replace(original: dict[str, Any]) -> dict[str, Any]:
        return {
            style: tuple(change(cls) if cls.__name__ == name else cls for cls in entry)
            if isinstance(entry, tuple)
            else entry
            for style, entry in original.items()
        }

    return replace


def replacements(fault: str) -> dict[str, Replace]:
    return {
        "missing_all_reduce": {"reduce_from_tp": only_first_summed},
        "missing_gradient_all_reduce": {"copy_to_tp": only_first_gradient},
        "bias_added_tp_times": {"STYLES": styles_with("ManualRowLinear", with_bias_before)},
        "swapped_shards": {"place": swapped},
        "gelu_tanh_for_erf": {"ACTIVATIONS": tanh_activation},
        "weight_replicated_by_accident": {"place": replicated},
        "other_input_on_one_rank": {"place": other_on_rank_1},
        "one_collective_too_many": {"reduce_from_tp": twice},
        "weights_never_move": {"train_step": of_a_copy},
        "replicated_gradients_counted_tp_times": {"global_norm": summed_over_all},
        "decay_of_the_framework": {
            "Recipe": lambda original: lambda **given: original(**given | {"weight_decay": 1e-4})
        },
        "gradients_not_synced_over_dp": {"copy_to_tp": only_first_gradient},
        "panel_of_another_owner": {"broadcast": from_the_next},
        "norm_gradient_of_own_rows": {"copy_to_tp": but_over_x},
        "masks_by_local_place": {"positions": by_local_place},
        "gradients_times_tp": {"reduce_from_tp": summed_backward_too},
        "fused_weight_cut_as_one": {"place": cut_as_one},
        "norm_gradient_of_own_tokens": {"copy_to_tp": only_first_gradient},
        "target_of_another_dtype": {"loss_and_gradients": narrower_target},
    }[fault]
