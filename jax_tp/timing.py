"""How long a step takes: the first call, which traces and compiles, separately from the steady ones."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

Outputs = TypeVar("Outputs")


def wait(outputs: Outputs) -> Outputs:
    """Block until the device has finished; otherwise only the dispatch would be timed."""
    return jax.block_until_ready(outputs)


def align() -> None:
    """Wait for all processes; otherwise the time of a collective would include waiting for the last one to arrive."""
    multihost_utils.sync_global_devices("align")


def time_once(step: Callable[[], Outputs]) -> tuple[Outputs, float]:
    """Run the step, all processes together; returns its outputs and its seconds."""
    align()
    start = time.perf_counter()
    outputs = wait(step())
    return outputs, time.perf_counter() - start


def time_step(step: Callable[[], Outputs], repeats: int) -> tuple[Outputs, float, float]:
    """Run the step once, then `repeats` times; returns (outputs of the first call, its seconds, median of the rest)."""
    outputs, cold_s = time_once(step)
    return outputs, cold_s, statistics.median(time_once(step)[1] for _ in range(repeats))
