"""How well collectives are predicted that were not fitted on: fit again and again, each time without some of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from parity.calibrate.check import Point, predict
from parity.calibrate.fit import node_counts_out, sizes_out
from parity.calibrate.measurements import CalibrationError, Measurement
from parity.calibrate.run import calibrate
from parity.cost.group import CostError


def held_out(measurements: Sequence[Measurement], base: str | Path) -> tuple[list[Point], dict[str, int]]:
    """(measurement, what a machine fitted without it says) of all that can be held out; how many cannot, by reason.

    On one node every third size goes, with all collectives and groups of that size; over nodes one node count goes, or
    every third size where there are fewer than three. The interval is fitted without them too. Raises CalibrationError
    where nothing can be held out.
    """
    points: list[Point] = []
    skipped: dict[str, int] = defaultdict(int)
    inside = [row for row in measurements if row.nodes == 1]
    across = [row for row in measurements if row.nodes > 1]
    for rows, folds in ((inside, sizes_out(inside)), (across, node_counts_out(across))):
        for held in folds:
            kept = [row for index, row in enumerate(rows) if index not in held]
            try:
                machine = calibrate(kept, "held-out", base).machine
                points += [(rows[index], predict(machine, rows[index])) for index in sorted(held)]
            except (CalibrationError, CostError) as error:
                skipped[f"too little left to fit without them ({error})"] += len(held)
    if not points:
        raise CalibrationError("too few sizes and node counts to hold any out")
    return points, dict(skipped)
