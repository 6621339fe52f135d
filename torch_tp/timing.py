"""How long a step takes: the first call, which traces and compiles, separately from the steady ones."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

Outputs = TypeVar("Outputs")


def wait(device: str) -> None:
    """Block until the device has finished; otherwise only the dispatch would be timed."""
    if device == "cuda":
        torch.cuda.synchronize()


def align(device: str) -> None:
    """Wait for all ranks; otherwise the time of a collective would include waiting for the last one to arrive."""
    dist.barrier()
    wait(device)


def time_once(step: Callable[[], Outputs], device: str) -> tuple[Outputs, float]:
    """Run the step, all ranks together; returns its outputs and its seconds."""
    align(device)
    start = time.perf_counter()
    outputs = step()
    wait(device)
    return outputs, time.perf_counter() - start


def time_step(step: Callable[[], Outputs], device: str, repeats: int) -> tuple[Outputs, float, float]:
    """Run the step once, then `repeats` times; returns (outputs of the first call, its seconds, median of the rest)."""
    outputs, cold_s = time_once(step, device)
    return outputs, cold_s, statistics.median(time_once(step, device)[1] for _ in range(repeats))
