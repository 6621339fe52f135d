"""Place arrays on the mesh, and describe where the shards of a tensor are.

A layout in PyTorch is indexed by mesh axis: one placement for each axis, `Shard(dim)`, `Replicate()` or `Partial()`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

Layout = Placement | tuple[Placement, ...]  # a single placement for a mesh of one axis, else one per axis


@dataclass(frozen=True, eq=False)
class Plan:
    """The layouts of a layer's input, output and parameters."""

    x: Layout
    y: Layout
    params: Mapping[str, Layout] = field(default_factory=dict)  # keyed by the parameter's name in the module
    inputs: Mapping[str, Layout] = field(default_factory=dict)  # further inputs by name: labels, masks
    constants: tuple[str, ...] = ()  # inputs that need no gradient
    children: Mapping[str, Plan] = field(default_factory=dict)  # keyed by the submodule's name
    algorithm: str = ""  # for products on a grid: grid/product.py


# Arrays, or tensors without data (`fake_group`), from which a model can be traced for devices that do not exist.
State = Mapping[str, np.ndarray | torch.Tensor]


def child(state: State, name: str) -> State:
    """The part of a canonical state of a submodule: child({"up.w": a, "down.w": b}, "up") == {"w": a}."""
    return {key.removeprefix(f"{name}."): array for key, array in state.items() if key.startswith(f"{name}.")}


def to_tensor(array: np.ndarray | torch.Tensor, device: str) -> torch.Tensor:
    """A NumPy array as a tensor of the same dtype; bfloat16 goes bitwise, as torch.from_numpy rejects it."""
    if isinstance(array, torch.Tensor):
        return array.contiguous().to(device)  # FSDP requires contiguous parameters
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(device)
    return torch.from_numpy(np.array(array, order="C")).to(device)


def placements_of(layout: Layout) -> tuple[Placement, ...]:
    """A layout as a tuple with one placement per mesh axis."""
    return layout if isinstance(layout, tuple) else (layout,)


def place(array: np.ndarray | torch.Tensor, mesh: DeviceMesh, placement: Layout) -> DTensor:
    """The global array (the same in every process) as a DTensor; each process keeps its shard, nothing is sent.

    Raises ValueError for a dim that the mesh does not divide; DTensor would make uneven shards, JAX refuses too.
    """
    tensor, placements = to_tensor(array, mesh.device_type), placements_of(placement)
    _check_divisible(tensor, mesh, placements)
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def _check_divisible(tensor: torch.Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> None:
    for dim, size in enumerate(tensor.shape):
        # Not `is_shard`: a `_StridedShard`, what `fully_shard` cuts within a tp shard, says that it is none.
        axes = [axis for axis, placement in enumerate(placements) if getattr(placement, "dim", None) == dim]
        ways = math.prod(mesh.size(axis) for axis in axes)
        if size % ways:
            names = "x".join((mesh.mesh_dim_names or ())[axis] for axis in axes)
            fits = " or ".join(str(size // ways * ways + more) for more in (0, ways) if size // ways or more)
            raise ValueError(f"{names}={ways} does not divide dim {dim} of {list(tensor.shape)}; {fits} would work")


def native_name(name: str) -> str:
    """The module's name of a canonical parameter: `up.w` -> `up.weight`, `up.b` -> `up.bias`."""
    path, _, leaf = name.rpartition(".")
    return f"{path}.".lstrip(".") + {"w": "weight", "b": "bias", "table": "weight", "scale": "weight"}.get(leaf, leaf)


def canonical(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A parameter or gradient in the orientation of `y = x w`; PyTorch stores the weight of a linear as [out, in]."""
    return tensor.movedim(-1, 0) if name.rpartition(".")[2] == "w" else tensor


def describe(tensor: DTensor) -> tuple[np.ndarray, list[tuple[int, int]], list[str]]:
    """This process's shard: its values, its [start, stop) in each dim, and the axes over which it is partial."""
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    partial = [
        axis
        for axis, placement in zip(tensor.device_mesh.mesh_dim_names or (), tensor.placements, strict=True)
        if placement.is_partial()
    ]
    index = [(start, start + size) for start, size in zip(offset, shape, strict=True)]
    return to_numpy(tensor.to_local()), index, partial


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as a NumPy array of the same dtype."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
