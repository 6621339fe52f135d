"""How well a machine file predicts measurements: errors by collective, group and size, interval coverage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from parity.calibrate.measurements import Measurement
from parity.cost.collective import collective_time
from parity.cost.group import CostError, Group
from parity.cost.interval import SIZE_CLASSES, Estimate, size_class
from parity.cost.machine import Machine

Point = tuple[Measurement, Estimate]  # what was measured, and what is predicted of it


@dataclass(frozen=True)
class CheckRow:
    """|predicted / measured - 1| of the measurements of one kind, group and class of payload."""

    kind: str
    gpus: int
    nodes: int
    size_class: str
    num_points: int
    median_error: float
    p90_error: float
    median_ratio: float  # of predicted / measured: below 1 the model is optimistic
    coverage: float  # part of the measurements inside their 90 % interval


@dataclass(frozen=True)
class Check:
    """The rows, the same over all points of one node and of several, and what could not be predicted and why."""

    machine: str
    rows: tuple[CheckRow, ...]
    totals: tuple[CheckRow, ...]
    skipped: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def predict(machine: Machine, row: Measurement) -> Estimate:
    """What the machine says of one measurement. Raises CostError."""
    group = Group(row.gpus, row.nodes)
    return collective_time(
        machine, row.kind, row.payload_bytes, group, in_place=row.in_place, gpus_per_process=row.gpus_per_process
    )


def check(machine: Machine, measurements: Sequence[Measurement]) -> Check:
    """Compare what `machine` predicts with what was measured."""
    return check_points(machine.name, *predicted(machine, measurements))


def predicted(machine: Machine, measurements: Sequence[Measurement]) -> tuple[list[Point], dict[str, int]]:
    """The measurements that `machine` can predict, each with its prediction; how many it cannot, by reason."""
    points: list[Point] = []
    skipped: dict[str, int] = defaultdict(int)
    for row in measurements:
        if row.gpus < 2 or row.payload_bytes == 0:
            skipped["no communication"] += 1
            continue
        try:
            points.append((row, predict(machine, row)))
        except CostError as error:
            skipped[str(error)] += 1
    return points, dict(skipped)


def check_points(name: str, points: Sequence[Point], skipped: dict[str, int]) -> Check:
    """Errors and coverage of predictions, whichever machine gave each."""
    groups: dict[tuple[str, int, int, str], list[Point]] = defaultdict(list)
    for point in points:
        row = point[0]
        groups[row.kind, row.gpus, row.nodes, size_class(row.payload_bytes)].append(point)
    order = list(SIZE_CLASSES)
    keys = sorted(groups, key=lambda key: (*key[:3], order.index(key[3])))
    inside = [point for point in points if point[0].nodes == 1]
    large = [point for point in points if point[0].nodes > 1 and point[0].payload_bytes >= 2**20]
    small = [point for point in points if point[0].nodes > 1 and point[0].payload_bytes < 2**20]
    totals = (
        _row(("all", 0, 1, "one node, all sizes"), inside),
        _row(("all", 0, 0, "several nodes, 1 MiB and up"), large),
        _row(("all", 0, 0, "several nodes, under 1 MiB"), small),
    )
    return Check(
        name,
        tuple(_row(key, groups[key]) for key in keys),
        tuple(row for row in totals if row.num_points),
        skipped,
    )


def _row(key: tuple[str, int, int, str], points: Sequence[Point]) -> CheckRow:
    if not points:
        return CheckRow(*key, 0, float("nan"), float("nan"), float("nan"), float("nan"))
    ratios = np.array([estimate.seconds / row.time_s for row, estimate in points])
    errors = np.abs(ratios - 1)
    covered = [estimate.low_s <= row.time_s <= estimate.high_s for row, estimate in points]
    return CheckRow(
        *key,
        len(points),
        float(np.median(errors)),
        float(np.quantile(errors, 0.9)),
        float(np.median(ratios)),
        float(np.mean(covered)),
    )
