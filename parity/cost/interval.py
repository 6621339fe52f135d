"""How sure a predicted time is: 90 % of measured / predicted lay inside the interval when points were held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from parity.cost.machine import Band, Machine

# Lower edges of the classes of payload that errors are told apart by.
SIZE_CLASSES = {"under 256 KiB": 0.0, "256 KiB to 1 MiB": 2.0**18, "1 to 16 MiB": 2.0**20, "16 MiB and up": 2.0**24}
NORMAL_95 = 1.645  # 90 % of a normal distribution lies within so many standard deviations


@dataclass(frozen=True)
class Estimate:
    """A predicted time: 90 % of measurements are expected between `low_s` and `high_s`."""

    seconds: float
    low_s: float
    high_s: float
    basis: str  # what it rests on, for people
    predicted: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def total(parts: Sequence[tuple[Estimate, float]], basis: str) -> Estimate:
    """The sum of (estimate, count) parts. Their errors may all lean one way (one machine, one NCCL), so ends add up."""
    return Estimate(
        sum(count * part.seconds for part, count in parts),
        sum(count * part.low_s for part, count in parts),
        sum(count * part.high_s for part, count in parts),
        basis,
    )


def with_interval(
    machine: Machine, scope: str, payload_bytes: float, seconds: float, basis: str, spread: float
) -> Estimate:
    """`seconds` with the machine's band for that scope and size, widened by `spread` and by the machine's own."""
    bands = sorted((band for band in machine.bands if band.scope == scope), key=lambda band: band.min_bytes)
    band = next((band for band in reversed(bands) if band.min_bytes <= payload_bytes), bands[0])
    band = widened(band, math.hypot(spread, machine.unseen_spread))
    return Estimate(seconds, seconds * band.low, seconds * band.high, basis)


def widened(band: Band, spread: float) -> Band:
    """`band` for a time that errs, beside what the band holds, by `spread` (standard deviation of its logarithm)."""
    extra = NORMAL_95 * spread
    low = math.exp(-math.hypot(math.log(band.low), extra))
    return replace(band, low=low, high=math.exp(math.hypot(math.log(band.high), extra)))


def size_class(payload_bytes: float) -> str:
    """The name of the class in SIZE_CLASSES that a payload belongs to."""
    return next(name for name, edge in reversed(SIZE_CLASSES.items()) if payload_bytes >= edge)


# Neighbouring sizes err together, so the 5th and 95th percentile of few of them are too near: with these, points held
# out of the whole procedure (fit and interval) lay inside the 90 % interval about 90 times in a hundred.
TAIL = 0.03
LEAST_HALF_WIDTH = 0.04  # repeats of one measurement differ by 2 to 4 %


def fit_bands(
    scope: str, payload_bytes: Sequence[float], ratios: Sequence[float], least_points: int = 12
) -> list[Band]:
    """Bands from held-out measured / predicted: quantiles by size class, of all where few fell in."""
    sizes, values = np.asarray(payload_bytes), np.asarray(ratios)
    bands = []
    for name, edge in SIZE_CLASSES.items():
        chosen = values[[size_class(size) == name for size in sizes]]
        low, high = np.quantile(chosen if len(chosen) >= least_points else values, [TAIL, 1 - TAIL])
        bands.append(Band(scope, edge, min(float(low), 1 - LEAST_HALF_WIDTH), max(float(high), 1 + LEAST_HALF_WIDTH)))
    return bands
