"""How long the collectives of the process group take. Payloads are S of nccl-tests: bytes of float32 per rank.

    kind               a rank's buffers, in elements (s = S / 4, n ranks)
    all_reduce         [s], in place
    all_gather         [s/n] -> [s]
    reduce_scatter     [s] -> [s/n]
    all_to_all         [s] -> [s], n pieces of s/n
    broadcast          [s], from rank 0
    permute            [s] -> [s], to the next rank

Ranks are synchronised before every call, and each call is timed alone, as a step sees it that needs the result at once.
nccl-tests issues calls back to back, which hides launch latency.

Source: https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from torch_tp.timing import align, wait

REPEATS = 9


def make_call(kind: str, payload_bytes: int, device: str) -> Callable[[], object] | None:
    """A function that runs the collective on its own buffers; None if the backend does not support it.

    payload_bytes: S, a multiple of 4 times the number of ranks.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    whole, received = torch.zeros(payload_bytes // 4, device=device), torch.empty(payload_bytes // 4, device=device)
    part = torch.zeros(payload_bytes // 4 // world, device=device)

    def permute() -> None:
        sends = dist.P2POp(dist.isend, whole, (rank + 1) % world)
        receives = dist.P2POp(dist.irecv, received, (rank - 1) % world)
        for work in dist.batch_isend_irecv([sends, receives]):
            work.wait()

    return {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather_single(received, part),
        "reduce_scatter": lambda: dist.reduce_scatter_single(part, whole),
        "all_to_all": lambda: dist.all_to_all_single(received, whole),
        "broadcast": lambda: dist.broadcast(whole, 0),
        "permute": permute,
    }[kind]


def measure(kind: str, payload_bytes: int, device: str) -> list[float]:
    """Seconds of each of REPEATS calls on this rank, after one cold call; empty if the backend lacks it."""
    call = make_call(kind, payload_bytes, device)

    def once() -> float:
        align(device)
        start = time.perf_counter()
        call()
        wait(device)
        return time.perf_counter() - start

    if call is None:
        return []
    once()
    return [once() for _ in range(REPEATS)]
