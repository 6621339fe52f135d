"""Fit a machine to measurements, and find out by holding points out how far to trust it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from parity.calibrate.check import predict
from parity.calibrate.fit_across import fit_across
from parity.calibrate.fit_inside import fit_curves
from parity.calibrate.measurements import CalibrationError, Measurement, usable
from parity.cost.group import CostError
from parity.cost.interval import fit_bands, widened
from parity.cost.machine import Band, Machine

FOLDS = 3
LEAST_RESIDUALS = 12
UNSEEN_SPREAD = 0.10  # real machines of one kind differ by 7 to 12 %


def fit_machine(measurements: Sequence[Measurement], base: Machine, name: str, source: str) -> Machine:
    """`base` with everything that `measurements` determine fitted to them, and the intervals that held-out points give.

    What they do not determine (other group sizes, the network in a log of one node) stays as in `base`, whose own
    uncertainty then stays too. Raises CalibrationError if nothing usable was measured.
    """
    rows = usable(measurements)
    if not rows:
        raise CalibrationError(
            f"{name}: no measurement of more than one GPU and of more than the launches of one process"
        )
    fitted = replace(_fit_parts(rows, base, source), name=name, source=source)
    bands = []
    for scope, folds in (("node", sizes_out), ("nodes", node_counts_out)):
        own = [row for row in rows if (row.nodes == 1) == (scope == "node")]
        theirs = [widened(band, max(base.unseen_spread, UNSEEN_SPREAD)) for band in base.bands if band.scope == scope]
        bands += _held_out_bands(own, fitted, scope, folds) or theirs
    return replace(fitted, bands=tuple(bands), unseen_spread=0.0)


def _fit_parts(rows: Sequence[Measurement], base: Machine, source: str) -> Machine:
    curves = fit_curves(rows, source)
    rings, trees = fit_across(rows, base, source)
    measured = {curve.kind for curve in curves}
    # A curve of the base beside fitted ones of another machine would mix two machines in one derivation.
    kept = [] if measured else list(base.curves)
    return replace(
        base,
        curves=tuple(curves + kept),
        rings=tuple(rings) or base.rings,
        trees=tuple(trees) or (() if rings else base.trees),
    )


def _held_out_bands(
    rows: Sequence[Measurement],
    fitted: Machine,
    scope: str,
    folds: Callable[[Sequence[Measurement]], Iterator[set[int]]],
) -> list[Band]:
    sizes: list[float] = []
    ratios: list[float] = []
    for held in folds(rows):
        kept = [row for index, row in enumerate(rows) if index not in held]
        try:
            machine = _fit_parts(kept, fitted, "held out")
            for index in held:
                ratios.append(rows[index].time_s / predict(machine, rows[index]).seconds)
                sizes.append(rows[index].payload_bytes)
        except CostError:
            continue  # without them there is too little left to fit
    return fit_bands(scope, sizes, ratios) if len(ratios) >= LEAST_RESIDUALS else []


def sizes_out(rows: Sequence[Measurement]) -> Iterator[set[int]]:
    """Every third size, but the smallest and the largest: in between is where the curve is used."""
    sizes = sorted({row.payload_bytes for row in rows})
    for fold in range(FOLDS):
        out = {size for index, size in enumerate(sizes[1:-1]) if index % FOLDS == fold}
        yield {index for index, row in enumerate(rows) if row.payload_bytes in out}


def node_counts_out(rows: Sequence[Measurement]) -> Iterator[set[int]]:
    """One node count at a time; with one or two only, every third size."""
    counts = sorted({row.nodes for row in rows})
    if len(counts) < 3:
        yield from sizes_out(rows)
        return
    for count in counts:
        yield {index for index, row in enumerate(rows) if row.nodes == count}
