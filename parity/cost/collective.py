"""Seconds of one collective on a machine that nobody has to own.

    inside a node    a fitted curve, straight in payload between knots (latency + bytes / bandwidth, piecewise)
    across nodes     a ring, or for a small all_reduce a tree, over nodes: see `machine.Ring` and `machine.Tree`

What was not measured is derived from what was, by equal bytes on the wire, and says so with a wider interval. NCCL's
structure (rings, trees, protocols by size) is that of https://github.com/NVIDIA/nccl, src/graph/tuning.cc.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from parity.cost.group import CostError, Group, wire_factor
from parity.cost.interval import Estimate, with_interval
from parity.cost.machine import Curve, Machine, Ring, Tree

# Spread of log(measured / predicted) that a derivation adds. The first two are such that 8 GPUs behind a switch,
# predicted from 4 in a mesh, lie inside their intervals; of the others no measurement was at hand, they are judged.
SPREAD_OTHER_SIZE = 0.30
SPREAD_OTHER_KIND = 0.20
SPREAD_UNMEASURED_NETWORK = 0.35
SPREAD_SHARED_NICS = 0.15

# Where to derive a kind from that was not measured inside a node; the first that was.
STAND_INS = {
    "all_gather": ("reduce_scatter", "broadcast", "all_reduce"),
    "reduce_scatter": ("all_gather", "broadcast", "all_reduce"),
    "all_reduce": ("reduce_scatter", "all_gather"),
    "all_to_all": ("all_gather", "reduce_scatter", "all_reduce"),
    "broadcast": ("all_gather", "reduce_scatter", "all_reduce"),
    "permute": ("all_gather", "reduce_scatter", "broadcast", "all_reduce"),
}


@dataclass(frozen=True)
class _Time:
    seconds: float
    basis: str
    spread: float = 0.0


def collective_time(
    machine: Machine,
    kind: str,
    payload_bytes: float,
    group: Group,
    *,
    in_place: bool = False,
    gpus_per_process: int = 1,
) -> Estimate:
    """Predicted time of one collective of `payload_bytes` (S of nccl-tests) on `group`, with a 90 % interval.

    `in_place` matters to all_gather, whose own shard is then not copied. `gpus_per_process` > 1 is for logs of one
    process that drives many GPUs: its launches are serial and hide anything faster. Raises CostError for a kind or
    group that the machine cannot run.
    """
    _check(machine, payload_bytes, group)
    wire_factor(kind, group.gpus)
    if group.gpus == 1 or payload_bytes == 0:
        return Estimate(0.0, 0.0, 0.0, "no communication")
    if group.nodes == 1:
        time = _inside(machine, kind, payload_bytes, group.gpus, in_place)
    else:
        time = _across(machine, kind, payload_bytes, group)
    floor_s = _launch_floor(machine, kind, gpus_per_process)
    if floor_s > time.seconds:
        time = _Time(floor_s, "launches of one process, one GPU after the other", time.spread)
    return with_interval(
        machine, "node" if group.nodes == 1 else "nodes", payload_bytes, time.seconds, time.basis, time.spread
    )


def _check(machine: Machine, payload_bytes: float, group: Group) -> None:
    if payload_bytes < 0:
        raise CostError(f"payload of {payload_bytes} bytes: must be >= 0")
    if group.gpus_per_node > machine.gpus_per_node:
        raise CostError(f"group of {group.gpus_per_node} GPUs a node: {machine.name} has {machine.gpus_per_node}")
    if group.nodes > machine.max_nodes:
        raise CostError(f"group on {group.nodes} nodes: {machine.name} has {machine.max_nodes}")
    if group.sharing * group.gpus_per_node > machine.gpus_per_node:
        raise CostError(
            f"{group.sharing} groups of {group.gpus_per_node} GPUs a node: {machine.name} has {machine.gpus_per_node}"
        )


def _launch_floor(machine: Machine, kind: str, gpus_per_process: int) -> float:
    # An all_to_all is a group of sends and receives; its launch was measured at 2.5 of the others (87 us for 35 us).
    return (
        0.0 if gpus_per_process == 1 else machine.launch_s * gpus_per_process * (2.5 if kind == "all_to_all" else 1.0)
    )


def curve_time(curve: Curve, payload_bytes: float) -> float:
    """Straight between knots; flat below the first; along the last piece above the last."""
    x, y = curve.payload_bytes, curve.time_s
    if payload_bytes > x[-1]:
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2]) if len(x) > 1 else y[-1] / x[-1]
        return y[-1] + max(slope, 0.0) * (payload_bytes - x[-1])
    return float(np.interp(payload_bytes, x, y))


def _inside(machine: Machine, kind: str, payload_bytes: float, gpus: int, in_place: bool) -> _Time:
    measured = [curve for curve in machine.curves if curve.kind == kind]
    if measured:
        return _of_sizes(machine, kind, payload_bytes, gpus, in_place)
    for other in STAND_INS[kind]:
        if any(curve.kind == other for curve in machine.curves):
            # A permute inside a mesh has only the links of one pair.
            as_gpus = 2 if kind == "permute" and machine.topology == "mesh" else gpus
            same_wire = payload_bytes * wire_factor(kind, gpus) / wire_factor(other, as_gpus)
            time = _of_sizes(machine, other, same_wire, as_gpus, True)
            return _Time(
                time.seconds, f"{time.basis}, same bytes on the wire", math.hypot(time.spread, SPREAD_OTHER_KIND)
            )
    raise CostError(f"{kind}: {machine.name} has no curve of any collective to derive it from")


def _of_sizes(machine: Machine, kind: str, payload_bytes: float, gpus: int, in_place: bool) -> _Time:
    """From the curve of that many GPUs, or the mean (of logs) of the nearest smaller and larger groups."""
    curves: dict[int, Curve] = {}
    for curve in machine.curves:
        if curve.kind == kind and (curve.gpus not in curves or curve.in_place in (None, in_place)):
            curves[curve.gpus] = curve
    if gpus in curves:
        return _Time(curve_time(curves[gpus], payload_bytes), f"curve of {kind}, {gpus} GPUs")
    below = max((size for size in curves if size < gpus), default=None)
    above = min((size for size in curves if size > gpus), default=None)
    near = [size for size in (below, above) if size is not None]
    logs = []
    for size in near:
        # Links in use grow with the peers in a mesh; behind a switch all of a GPU's links serve any group.
        speed = (gpus - 1) / (size - 1) if machine.topology == "mesh" else 1.0
        same_time = payload_bytes * wire_factor(kind, gpus) / wire_factor(kind, size) / speed
        logs.append(math.log(curve_time(curves[size], same_time)))
    basis = f"curves of {kind}, {' and '.join(map(str, near))} GPUs"
    return _Time(math.exp(sum(logs) / len(logs)), basis, SPREAD_OTHER_SIZE)


def _across(machine: Machine, kind: str, payload_bytes: float, group: Group) -> _Time:
    if not machine.rings:
        raise CostError(f"{kind} on {group.nodes} nodes: {machine.name} has no [[rings]]; fit them with calibrate")
    spread = SPREAD_SHARED_NICS if group.sharing > 1 else 0.0
    if kind == "permute":
        # Each message crosses once, by one NIC or its share of one.
        one = Group(2, 2, group.sharing)
        ring, own = _nearest_ring(machine, 1)
        seconds = ring_time(ring, machine, 2 * payload_bytes, one, 1)
        return _Time(seconds, "one hop of the ring over nodes", math.hypot(spread + own, SPREAD_UNMEASURED_NETWORK))
    ring, own = _nearest_ring(machine, group.gpus_per_node)
    spread = math.hypot(spread, own)
    if kind == "all_to_all":
        time = _all_to_all_across(machine, ring, payload_bytes, group)
        return _Time(time, "NIC share and a start a peer node", math.hypot(spread, SPREAD_UNMEASURED_NETWORK))
    if kind == "broadcast":
        same_wire = payload_bytes / wire_factor("all_gather", group.gpus)
        time = ring_time(ring, machine, same_wire, group, 1)
        return _Time(time, "ring over nodes, same bytes on the wire", math.hypot(spread, SPREAD_UNMEASURED_NETWORK))
    if kind == "all_reduce" and machine.trees:
        tree = min(machine.trees, key=lambda t: abs(math.log(t.gpus_per_node / group.gpus_per_node)))
        if payload_bytes / group.gpus < tree.max_message_bytes:
            return _Time(tree_time(tree, machine, payload_bytes, group), "tree over nodes", spread)
    steps = 2 if kind == "all_reduce" else 1
    return _Time(ring_time(ring, machine, payload_bytes, group, steps), "ring over nodes", spread)


def _nearest_ring(machine: Machine, gpus_per_node: int) -> tuple[Ring, float]:
    ring = min(machine.rings, key=lambda r: abs(math.log(r.gpus_per_node / gpus_per_node)))
    return ring, 0.0 if ring.gpus_per_node == gpus_per_node else SPREAD_OTHER_SIZE


def _bytes_per_s(fitted: Ring | Tree, machine: Machine, group: Group) -> float:
    """The fitted bandwidth, scaled to the NICs that the group has here: its share of the node's, at most one a GPU."""
    here = min(group.gpus_per_node, machine.nics_per_node / group.sharing) * machine.nic_bytes_per_s
    return fitted.bytes_per_s * here / (fitted.num_nics * fitted.nic_bytes_per_s)


def ring_time(ring: Ring, machine: Machine, payload_bytes: float, group: Group, steps: int) -> float:
    """start(s) + steps * ((n - 1) * s / bytes_per_s + (nodes - 1) * hop(s)), s = payload / n the message of a step."""
    message = payload_bytes / group.gpus
    start_s, hop_s = (_at(message, ring.message_bytes, times) for times in (ring.start_s, ring.hop_s))
    through_s = (group.gpus - 1) * message / _bytes_per_s(ring, machine, group)
    return start_s + steps * (through_s + (group.nodes - 1) * hop_s)


def _at(size: float, knots: tuple[float, ...], times: tuple[float, ...]) -> float:
    """Straight in log2(size) between the knots, flat outside."""
    return float(np.interp(math.log2(size), np.log2(knots), times))


def tree_time(tree: Tree, machine: Machine, payload_bytes: float, group: Group) -> float:
    """start + 2 S (n - 1)/n / bytes_per_s + log2(nodes) * level(S)."""
    level_s = _at(payload_bytes, tree.payload_bytes, tree.level_s)
    through_s = payload_bytes * wire_factor("all_reduce", group.gpus) / _bytes_per_s(tree, machine, group)
    return tree.start_s + through_s + math.log2(group.nodes) * level_s


def _all_to_all_across(machine: Machine, ring: Ring, payload_bytes: float, group: Group) -> float:
    """The node's outgoing bytes through its NICs, a hop's start for each other node, or the part inside if longer."""
    leaving = group.gpus_per_node * payload_bytes * (group.gpus - group.gpus_per_node) / group.gpus
    network_s = ring.start_s[0] + (group.nodes - 1) * ring.hop_s[0] + leaving / _bytes_per_s(ring, machine, group)
    if group.gpus_per_node == 1:
        return network_s
    inside = payload_bytes * group.gpus_per_node / group.gpus
    return max(network_s, _inside(machine, "all_to_all", inside, group.gpus_per_node, False).seconds)
