"""Join the process group (one or several devices per process) and build the device mesh from named axes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

# The starters that set these variables: torchrun (and our launcher), Open MPI, MPICH and PALS (Derecho), Slurm.
# jax.distributed detects some of them, but neither MPICH nor PALS.
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


def read_rank(names: tuple[str, ...], default: int) -> int:
    """The first of these environment variables that is set, as an integer."""
    return next((int(os.environ[name]) for name in names if name in os.environ), default)


def join(device: str, local_devices: int = 1) -> tuple[int, int]:
    """Join the group over gloo (cpu) or NCCL (cuda); returns (rank, number of processes).

    local_devices: how many this process drives. On the CPU any number, so that one process can have them all: it
    compiles a program once, as JAX does for the GPUs of a node, and needs no group.

    MASTER_ADDR and MASTER_PORT name the meeting point (this machine, port 29500, if unset).
    Raises RuntimeError if there is no such device.
    """
    rank, world = read_rank(RANK_VARIABLES, 0), read_rank(WORLD_VARIABLES, 1)
    host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        port += 1  # torchrun itself listens at the port that it names
    # gRPC would ask an http_proxy for the coordinator, on this very node too, and hang. It reads the second of these
    # where the first is not set, and no other spelling.
    excepted = os.environ.get("no_grpc_proxy", os.environ.get("no_proxy", ""))  # noqa: SIM112
    os.environ["no_grpc_proxy"] = f"{excepted},{host}" if excepted else host  # noqa: SIM112
    jax.config.update("jax_platforms", device)
    if device == "cpu":
        jax.config.update("jax_num_cpu_devices", local_devices)
    first = read_rank(LOCAL_RANK_VARIABLES, 0) * local_devices
    local = {"cpu": None, "cuda": list(range(first, first + local_devices))}[device]
    jax.distributed.initialize(f"{host}:{port}", num_processes=world, process_id=rank, local_device_ids=local)
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError):  # which of them depends on whether the plugin is installed
        raise RuntimeError(f"JAX {jax.__version__} finds no {device} device here: take --device cpu") from None
    return rank, world


def leave() -> None:
    """Leave the process group; collective."""
    jax.distributed.shutdown()


def make_mesh(axes: Mapping[str, int], axis_type: AxisType, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh with these axes, outermost first, over all devices (or those given) in order of rank.

    axis_type: `AxisType.Auto` leaves shardings to the compiler, `AxisType.Explicit` makes them part of types; axes of
    data parallelism stay `Auto`, since layers know nothing of them.
    Raises ValueError when the sizes do not multiply to the number of devices.
    Source: https://docs.jax.dev/en/latest/jax.sharding.html#jax.sharding.Mesh
    """
    in_order = np.array(jax.devices() if devices is None else devices).reshape(tuple(axes.values()))
    types = tuple(AxisType.Auto if name in DATA_AXES else axis_type for name in axes)
    return Mesh(in_order, tuple(axes), axis_types=types)
