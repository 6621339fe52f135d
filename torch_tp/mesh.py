"""Join the process group (one process per device) and build the device mesh from named axes."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh, _mesh_resources, init_device_mesh
from torch.distributed.tensor._collective_utils import MeshTopoInfo
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

# The starters that set these variables: torchrun (and our launcher), Open MPI, MPICH and PALS (Derecho), Slurm.
RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
WORLD_VARIABLES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")
LOCAL_RANK_VARIABLES = (
    "LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "PALS_LOCAL_RANKID",
    "MPI_LOCALRANKID",
    "SLURM_LOCALID",
)

DATA_AXES = ("dp", "fsdp")  # of data parallelism: hybrid.py

GPUS_PER_NODE = 4  # Derecho, Perlmutter, Polaris


def read_rank(names: tuple[str, ...], default: int) -> int:
    """The first of these environment variables that is set, as an integer."""
    return next((int(os.environ[name]) for name in names if name in os.environ), default)


def join(device: str) -> tuple[int, int]:
    """Join the process group over gloo (cpu) or NCCL (cuda); returns (rank, number of processes).

    MASTER_ADDR and MASTER_PORT name the meeting point (this machine, port 29500, if unset).
    Raises RuntimeError if there is no such device.
    """
    rank, world = read_rank(RANK_VARIABLES, 0), read_rank(WORLD_VARIABLES, 1)
    host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT", "29500")
    if device == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(f"PyTorch {torch.__version__} finds no CUDA device here: take --device cpu")
        torch.cuda.set_device(read_rank(LOCAL_RANK_VARIABLES, 0))
    backend = {"cpu": "gloo", "cuda": "nccl"}[device]
    dist.init_process_group(backend, init_method=f"tcp://{host}:{port}", rank=rank, world_size=world)
    return rank, world


def leave() -> None:
    """Leave the process group; collective."""
    dist.barrier()
    dist.destroy_process_group()


@contextmanager
def fake_group(num_devices: int, gpus_per_node: int = GPUS_PER_NODE) -> Iterator[None]:
    """Act as rank 0 of a group of devices that do not exist: collectives send nothing, tensors have shapes but no data.

    What is dispatched inside is what each real rank would dispatch; meshes are made by `make_mesh(axes, "cpu")`.
    DTensor chooses as on nodes of gpus_per_node: its costs would take each CPU for a node of its own.
    Only where this process has joined no group.
    Source: torch/testing/_internal/distributed/fake_pg.py, torch/_subclasses/fake_tensor.py
    """
    dist.init_process_group("fake", rank=0, world_size=num_devices, store=FakeStore())
    new_mesh, size_and_offset = DeviceMesh.__init__, _StridedShard.local_shard_size_and_offset

    def of_real_ranks(mesh: DeviceMesh, *args: Any, **kwargs: Any) -> None:
        with unset_fake_temporarily():  # also the meshes that DTensor and `fully_shard` make of ours
            new_mesh(mesh, *args, **kwargs)

    def from_values(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():  # it reads the offsets off an index tensor
            return size_and_offset(*args, **kwargs)

    MeshTopoInfo.build_from_mesh.cache_clear()
    try:
        with (
            FakeTensorMode(),
            patch.object(_mesh_resources, "num_devices_per_host", lambda _: gpus_per_node),
            patch.object(DeviceMesh, "__init__", of_real_ranks),
            patch.object(_StridedShard, "local_shard_size_and_offset", from_values),
        ):
            yield
    finally:
        MeshTopoInfo.build_from_mesh.cache_clear()
        _make_mesh.cache_clear()
        dist.destroy_process_group()


def make_mesh(axes: Mapping[str, int], device: str) -> DeviceMesh:
    """The mesh with these axes, outermost first, over all processes in rank order.

    Raises ValueError when the sizes do not multiply to the number of processes.
    Source: https://docs.pytorch.org/docs/stable/distributed.html#torch.distributed.device_mesh.init_device_mesh
    """
    return _make_mesh(tuple(axes.items()), device)


def inner_axes(mesh: DeviceMesh) -> list[tuple[str, ...]]:
    """All axes of the mesh, and the inner ones of them, as far as they are several: (dp, x, y) and (x, y)."""
    names = mesh.mesh_dim_names or ()
    return [names[first:] for first in range(len(names) - 1)]


@functools.cache  # each call of init_device_mesh makes process groups of its own
def _make_mesh(axes: tuple[tuple[str, int], ...], device: str) -> DeviceMesh:
    names, sizes = zip(*axes, strict=True)
    with unset_fake_temporarily():  # a mesh holds the ranks themselves
        mesh = init_device_mesh(device, sizes, mesh_dim_names=names)
        for inner in inner_axes(mesh):  # a group of these: DTensor then reduces over them at once, not one by one
            mesh[inner]._flatten("+".join(inner))
    return mesh
