"""Place arrays on the mesh, and describe where the shards of an array are.

A layout in JAX is indexed by tensor dim: a PartitionSpec names, for each dim, the mesh axis that shards it, or None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


@dataclass(frozen=True, eq=False)
class Plan:
    """The layouts of a layer's input, output and parameters."""

    x: P
    y: P
    params: Mapping[str, P] = field(default_factory=dict)  # keyed by the parameter's name in the module
    inputs: Mapping[str, P] = field(default_factory=dict)  # further inputs by name: labels, masks
    constants: tuple[str, ...] = ()  # inputs that need no gradient
    children: Mapping[str, Plan] = field(default_factory=dict)  # keyed by the submodule's name
    algorithm: str = ""  # for products on a grid: grid/product.py


# Arrays, or only shapes and dtypes, from which a model can be compiled for devices that do not exist.
State = Mapping[str, np.ndarray | jax.ShapeDtypeStruct]


def child(state: State, name: str) -> State:
    """The part of a canonical state of a submodule: child({"up.w": a, "down.w": b}, "up") == {"w": a}."""
    return {key.removeprefix(f"{name}."): array for key, array in state.items() if key.startswith(f"{name}.")}


def place(array: np.ndarray | jax.ShapeDtypeStruct, mesh: Mesh, spec: P) -> jax.Array | jax.ShapeDtypeStruct:
    """The global array (the same in every process) on the mesh; each process keeps its shards, nothing is sent."""
    sharding = NamedSharding(mesh, spec)
    if isinstance(array, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def native_name(name: str) -> str:
    """The module's name of a canonical parameter: `up.w` -> `up.kernel`, `up.b` -> `up.bias`."""
    path, _, leaf = name.rpartition(".")
    return f"{path}.".lstrip(".") + {"w": "kernel", "b": "bias", "table": "embedding", "scale": "scale"}.get(leaf, leaf)


def named_parameters(params: nnx.State) -> dict[str, nnx.Param]:
    """The parameters of a state (or their gradients) by their dotted path, as PyTorch names them."""
    return {".".join(map(str, path)): param for path, param in nnx.to_flat_state(params)}


def describe(array: jax.Array, device: jax.Device) -> tuple[np.ndarray, list[tuple[int, int]], list[str]]:
    """A device's shard: its values, its [start, stop) in each dim, and the axes over which it is partial."""
    (shard,) = (shard for shard in array.addressable_shards if shard.device == device)
    index = [part.indices(size)[:2] for part, size in zip(shard.index, array.shape, strict=True)]
    return np.asarray(shard.data), index, list(array.sharding.spec.unreduced)
