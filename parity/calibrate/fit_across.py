"""Fit the ring and the tree over nodes: a linear model in its parameters, all of which are times and so >= 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from parity.calibrate.fit_inside import hats
from parity.calibrate.measurements import Measurement
from parity.cost.group import wire_factor
from parity.cost.machine import Machine, Ring, Tree

Floats = NDArray[np.float64]
RINGED = ("all_gather", "reduce_scatter")
# log2 of the messages and payloads at which the hop and the level may bend: denser where NCCL changes protocol.
RING_KNOTS = np.array([7, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 25], float)
START_KNOTS = np.array([13, 16, 18, 20], float)  # of them, those at which the start may bend
TREE_KNOTS = np.array([15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 28], float)
SWITCHES = 2.0 ** np.arange(14, 25)  # candidates for the message from which an all_reduce goes by ring
LEAST_POINTS = 8
NOISE = 0.02  # repeats of one measurement differ by about as much
SMOOTHNESS = 0.3  # held-out sizes are predicted best around it; held-out node counts do not feel it


def fit_across(measurements: Sequence[Measurement], machine: Machine, source: str) -> tuple[list[Ring], list[Tree]]:
    """A ring and, if all_reduce was measured, a tree for each number of GPUs a node. `machine` says its NICs."""
    rings, trees = [], []
    rows = [row for row in measurements if row.nodes > 1 and row.kind in (*RINGED, "all_reduce")]
    for per_node in sorted({row.gpus_per_node for row in rows}):
        own = [row for row in rows if row.gpus_per_node == per_node]
        if len(own) < LEAST_POINTS:
            continue
        ring, tree = _fit_size(own, per_node, machine, source)
        rings.append(ring)
        trees += [tree] if tree else []
    return rings, trees


def _fit_size(rows: Sequence[Measurement], per_node: int, machine: Machine, source: str) -> tuple[Ring, Tree | None]:
    """Try each switch from tree to ring; the one of the least error."""
    reduced = [row for row in rows if row.kind == "all_reduce"]
    others = [row for row in rows if row.kind != "all_reduce"]
    tried: list[tuple[float, Ring, Tree | None]] = []
    for switch in SWITCHES:
        small = [row for row in reduced if row.payload_bytes / row.gpus < switch]
        large = [row for row in reduced if row.payload_bytes / row.gpus >= switch]
        if len(small) < LEAST_POINTS or len(others) + len(large) < LEAST_POINTS:
            continue
        ring, ring_error = _fit_ring([*others, *large], per_node, machine, source)
        tree, tree_error = _fit_tree(small, per_node, machine, float(switch), source)
        tried.append((float(np.mean(np.concatenate([ring_error, tree_error]))), ring, tree))
    if not tried:
        return _fit_ring(rows, per_node, machine, source)[0], None
    _, best_ring, best_tree = min(tried, key=lambda entry: entry[0])
    return best_ring, best_tree


def _columns(rows: Sequence[Measurement]) -> tuple[Floats, Floats, Floats, Floats]:
    gpus = np.array([row.gpus for row in rows], float)
    nodes = np.array([row.nodes for row in rows], float)
    payload = np.array([row.payload_bytes for row in rows], float)
    return gpus, nodes, payload, np.array([row.time_s for row in rows])


def _fit_ring(rows: Sequence[Measurement], per_node: int, machine: Machine, source: str) -> tuple[Ring, Floats]:
    gpus, nodes, payload, times = _columns(rows)
    steps = np.array([2.0 if row.kind == "all_reduce" else 1.0 for row in rows])
    message = payload / gpus
    knots = _within(RING_KNOTS, np.log2(message))
    start = hats(np.log2(message), START_KNOTS)
    hop = (steps * (nodes - 1))[:, None] * hats(np.log2(message), knots)
    through = steps * (gpus - 1) * message
    fit, error = robust_nnls(np.column_stack([start, through, hop]), times, len(START_KNOTS) + 1)
    starts, s_per_byte, hops = fit[: len(START_KNOTS)], fit[len(START_KNOTS)], fit[len(START_KNOTS) + 1 :]
    at_knots = np.interp(knots, START_KNOTS, starts)
    ring = Ring(
        gpus_per_node=per_node,
        num_nics=float(min(per_node, machine.nics_per_node)),
        nic_bytes_per_s=machine.nic_bytes_per_s,
        bytes_per_s=_bandwidth(s_per_byte),
        message_bytes=_floats(2.0**knots),
        start_s=_floats(at_knots),
        hop_s=_floats(hops),
        source=source,
    )
    return ring, error


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(map(float, values))


def _bandwidth(seconds_per_byte: float) -> float:
    # No bandwidth term at all: the knots carry it; a link a thousand times too fast then changes nothing.
    return float(1 / seconds_per_byte) if seconds_per_byte > 1e-14 else 1e14


def _fit_tree(
    rows: Sequence[Measurement], per_node: int, machine: Machine, switch: float, source: str
) -> tuple[Tree, Floats]:
    gpus, nodes, payload, times = _columns(rows)
    knots = _within(TREE_KNOTS, np.log2(payload))
    wire = payload * np.array([wire_factor("all_reduce", int(n)) for n in gpus])
    level = np.log2(nodes)[:, None] * hats(np.log2(payload), knots)
    fit, error = robust_nnls(np.column_stack([np.ones(len(rows)), wire, level]), times, 2)
    tree = Tree(
        gpus_per_node=per_node,
        num_nics=float(min(per_node, machine.nics_per_node)),
        nic_bytes_per_s=machine.nic_bytes_per_s,
        start_s=float(fit[0]),
        bytes_per_s=_bandwidth(fit[1]),
        payload_bytes=_floats(2.0**knots),
        level_s=_floats(fit[2:]),
        max_message_bytes=switch,
        source=source,
    )
    return tree, error


def _within(knots: Floats, x: Floats) -> Floats:
    """The knots that measurements lie between, with the next one on each side."""
    first = max(int(np.searchsorted(knots, x.min(), side="right")) - 1, 0)
    last = min(int(np.searchsorted(knots, x.max(), side="left")), len(knots) - 1)
    return knots[first : last + 1]


def robust_nnls(columns: Floats, times: Floats, smooth_from: int, iterations: int = 8) -> tuple[Floats, Floats]:
    """x >= 0 that makes the sum of |columns @ x / times - 1| about least, and those errors.

    Iteratively reweighted least squares: errors below NOISE weigh as squares do, larger ones by their size only, so
    that a few odd measurements do not bend the fit. Columns from `smooth_from` on are knots of one curve, held lightly
    to a smooth one so that a knot with few measurements follows its neighbours.
    """
    relative = columns / times[:, None]
    scale = np.abs(relative).mean(axis=0)
    bends = np.zeros((max(columns.shape[1] - smooth_from - 2, 0), columns.shape[1]))
    for row in range(len(bends)):
        bends[row, smooth_from + row : smooth_from + row + 3] = (1.0, -2.0, 1.0)
    bends *= SMOOTHNESS * np.sqrt(len(times)) * scale[smooth_from:].mean()
    scale[scale == 0] = 1.0
    target = np.concatenate([np.ones(len(times)), np.zeros(len(bends))])
    weights = np.ones(len(target))
    for _ in range(iterations):
        solution, _ = nnls(np.vstack([relative, bends]) / scale * weights[:, None], target * weights)
        errors = np.abs(relative @ (solution / scale) - 1)
        weights[: len(times)] = 1 / np.sqrt(np.maximum(errors, NOISE) / NOISE)
    return solution / scale, errors
