"""The errors of our model beside those of NCCL's tuning model, DTensor's and Inductor's, on the same measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from parity.calibrate.check import Point
from parity.calibrate.measurements import Measurement
from parity.cost.group import KINDS, Group
from parity.cost.machine import Machine
from parity.cost.peers import dtensor_time, inductor_time, nccl_time

Model = Callable[[Machine, str, float, Group], float | None]
PEERS: dict[str, Model] = {"NCCL": nccl_time, "DTensor": dtensor_time, "Inductor": inductor_time}
LARGE_BYTES = 2**20  # below it, times over nodes are noise


@dataclass(frozen=True)
class PeerRow:
    """|predicted / measured - 1| of one model on one collective; None where the model does not cover it."""

    model: str
    kind: str
    where: str
    num_points: int
    median_error: float | None
    p90_error: float | None


def compare_with_peers(machine: Machine, points: Sequence[Point]) -> list[PeerRow]:
    """A row a collective, place and model, "parity" first; all models of a collective see the same measurements."""
    rows = []
    for kind in KINDS:
        for where, chosen in (("one node", _inside), ("over nodes", _across)):
            known = [(row, ours) for row, ours in points if row.kind == kind and chosen(row)]
            if not known:
                continue
            rows.append(_row("parity", kind, where, [ours.seconds / row.time_s for row, ours in known]))
            for name, model in PEERS.items():
                theirs = [model(machine, kind, row.payload_bytes, Group(row.gpus, row.nodes)) for row, _ in known]
                ratios = [
                    time_s / row.time_s for time_s, (row, _) in zip(theirs, known, strict=True) if time_s is not None
                ]
                rows.append(_row(name, kind, where, ratios))
    return rows


def _inside(row: Measurement) -> bool:
    return row.nodes == 1 and row.gpus > 1 and row.payload_bytes > 0


def _across(row: Measurement) -> bool:
    return row.nodes > 1 and row.payload_bytes >= LARGE_BYTES


def _row(model: str, kind: str, where: str, ratios: Sequence[float]) -> PeerRow:
    if not ratios:
        return PeerRow(model, kind, where, 0, None, None)
    errors = np.abs(np.array(ratios) - 1)
    return PeerRow(model, kind, where, len(ratios), float(np.median(errors)), float(np.quantile(errors, 0.9)))
