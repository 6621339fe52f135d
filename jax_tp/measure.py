"""How long the collectives of the process group take. Payloads are S of nccl-tests: bytes of float32 per device.

    kind               a device's arrays, in elements (s = S / 4, n devices)
    all_reduce         [s] -> [s]
    all_gather         [s/n] -> [s]
    reduce_scatter     [s] -> [s/n]
    all_to_all         [s] -> [s], n pieces of s/n
    broadcast          [s] -> [s], from device 0
    permute            [s] -> [s], to the next device

Devices are synchronised before every call, and each call is timed alone, as a step sees it that needs the result at
once. nccl-tests issues calls back to back, which hides launch latency.

Source: https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
"""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_tp.mesh import make_mesh
from jax_tp.timing import align, wait

REPEATS = 9


def make_call(kind: str, payload_bytes: int, device: str) -> Callable[[], object] | None:
    """A function that runs the collective on its own array; None if the backend does not support it.

    payload_bytes: S, a multiple of 4 times the number of devices.
    """
    if (kind, device) == ("broadcast", "cpu"):  # XLA lowers pbroadcast for GPUs only
        return None
    world = jax.device_count()
    mesh = make_mesh({"rank": world}, AxisType.Auto)
    ring = [(rank, (rank + 1) % world) for rank in range(world)]
    collective = {
        "all_reduce": lambda x_shard: lax.psum(x_shard, "rank"),
        "all_gather": lambda x_shard: lax.all_gather(x_shard, "rank", tiled=True),
        "reduce_scatter": lambda x_shard: lax.psum_scatter(x_shard, "rank", tiled=True),
        "all_to_all": lambda x_shard: lax.all_to_all(x_shard, "rank", 0, 0, tiled=True),
        "broadcast": lambda x_shard: lax.pbroadcast(x_shard, "rank", 0),
        "permute": lambda x_shard: lax.ppermute(x_shard, "rank", ring),
    }[kind]
    result = P() if kind == "all_reduce" else P("rank")
    call = jax.jit(jax.shard_map(collective, mesh=mesh, in_specs=P("rank"), out_specs=result))
    size = payload_bytes // 4 * (1 if kind == "all_gather" else world)
    x = jax.jit(lambda: jnp.zeros(size, jnp.float32), out_shardings=NamedSharding(mesh, P("rank")))()
    return lambda: call(x)


def measure(kind: str, payload_bytes: int, device: str) -> list[float]:
    """Seconds of each of REPEATS calls on this device, after one cold call; empty if the backend lacks it."""
    call = make_call(kind, payload_bytes, device)

    def once() -> float:
        align()
        start = time.perf_counter()
        wait(call())
        return time.perf_counter() - start

    if call is None:
        return []
    once()
    return [once() for _ in range(REPEATS)]
