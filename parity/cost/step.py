"""Seconds of a whole step of training on a machine: what one GPU computes and sends, as traced, put on its clock.

    step = forward + backward + optimizer + what real steps take beside them
    each pass = compute + awaited collectives + what of the others shows

A collective that is awaited where it is issued adds its time. One that is started and awaited apart with a product
between (`is_async`) hides behind work, and while it is hidden its kernels keep some of the SMs from that work:

    scheduled   a compiled program says what work w runs between start and end of each call: max(0, a - w) shows
    pipelined   streams that no compiler orders (torch's for fsdp and dp) run beside the pass's other work, as in a
                pipeline of L stages with a collective a / L and work w / L each: a / L shows for the first, and of
                the rest what is longer than the work, (1 - 1 / L) max(0, a - w). Awaited collectives on the same
                link leave it no time to run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from parity.cost.collective import collective_time
from parity.cost.compute import attention_time, matmul_time, memory_time
from parity.cost.group import CostError, Group, wire_factor
from parity.cost.interval import Estimate, total
from parity.cost.machine import Machine
from parity.sizes import sizes_text
from parity.step_contract import Operation, StepTrace, TracedCollective

# Of a hidden collective's time, what the work beside it loses: NCCL's kernels hold about 8 to 24 of an A100's 108 SMs
# and some of its HBM. Judged, not measured: estimate, low and high end.
LOST_BESIDE = (0.10, 0.0, 0.25)
# Of all parts together, what a real step takes beside them: gaps between kernels, clocks under load, late ranks. From
# six steps of Llama 2 and 3 that torchtitan published (64 A100s, FSDP2; pytorch/torchtitan, docs/performance.md of
# 2024), which take 1.13 to 1.21 times the parts: estimate, low and high end.
BESIDE_PARTS = (0.16, 0.05, 0.25)

# A host that launches kernel by kernel keeps up with kernels that take longer; eager PyTorch takes about 5 to 20 us for
# each, DTensor more. Judged.
HOST_BOUND_BELOW_S = 20e-6

# What a part is called, by the kind of its operations.
WORK = {"matmul": "matmuls", "attention": "attention", "memory": "memory-bound"}


@dataclass(frozen=True)
class CollectiveCost:
    """All `count` calls of one traced collective, as if nothing ran beside them."""

    entry: TracedCollective
    link: str  # "nvlink": inside a node; "network": one GPU a node; "both"
    wire_bytes: float  # that one GPU sends, over all calls
    time: Estimate
    beside: Estimate | None = None  # own work scheduled beside one call; None where the trace has no schedule


@dataclass(frozen=True)
class Part:
    """A part of the step's time; the parts add up to it. `hidden_s` is time that runs beside other parts."""

    pass_: str
    name: str
    time: Estimate
    hidden_s: float = 0.0


@dataclass(frozen=True)
class StepCost:
    """One framework's step on a machine, predicted."""

    collectives: tuple[CollectiveCost, ...]
    parts: tuple[Part, ...]
    step: Estimate
    flops: int  # of one GPU's matmuls and attention, those of recomputation too
    num_kernels: int  # of its own work

    @property
    def mean_kernel_s(self) -> float:
        """How long a kernel of its own work takes on average: what the host has time to launch the next one in."""
        work = sum(part.time.seconds for part in self.parts if part.name in WORK.values())
        return work / max(self.num_kernels, 1)

    def of(self, name: str) -> Estimate:
        """The parts of that name, over all passes."""
        return total([(part.time, 1) for part in self.parts if part.name == name], name)


def link_of(group: Group) -> str:
    """The links of the machine that a group's collectives cross."""
    if group.nodes == 1:
        return "nvlink"
    return "network" if group.gpus_per_node == 1 else "both"


def check_mesh(machine: Machine, mesh: Mapping[str, int]) -> None:
    """Raises CostError where the machine cannot hold the mesh, or the groups of one of its axes."""
    for axis, size in mesh.items():
        if size < 1:
            raise CostError(f"mesh {sizes_text(mesh)}: axis {axis!r} must be of size 1 or more")
    _check_count(machine, math.prod(mesh.values()), f"mesh {sizes_text(mesh)} has")
    for axis in reversed([*mesh]):  # where an inner axis does not fit the nodes, the outer ones cannot
        if not _lies_evenly(machine, mesh, axis):
            fits = " or ".join(f"{axis}={size}" for size in _nearest(machine, mesh, axis))
            raise CostError(
                f"mesh {sizes_text(mesh)}: groups of {axis}={mesh[axis]} lie unevenly on nodes of "
                f"{machine.gpus_per_node} GPUs ({machine.name}); "
                f"{f'{fits} would work' if fits else 'the axes together must fill whole nodes'}"
            )


def check_gpus(machine: Machine, gpus: int) -> None:
    """Raises CostError for more GPUs than the machine has, and for nodes that would be used in part."""
    _check_count(machine, gpus, "asked for")
    mesh = {"fsdp": gpus}
    if not _lies_evenly(machine, mesh, "fsdp"):
        fits = map(str, _nearest(machine, mesh, "fsdp"))
        raise CostError(
            f"{gpus} GPUs do not fill nodes of {machine.gpus_per_node} GPUs ({machine.name}); "
            f"{' or '.join(fits)} would work"
        )


def _check_count(machine: Machine, gpus: int, who: str) -> None:
    has = machine.gpus_per_node * machine.max_nodes
    if gpus > has:
        nodes = f"{machine.max_nodes:,} nodes of {machine.gpus_per_node}"
        raise CostError(f"{who} {gpus:,} GPUs: {machine.name} has {has:,} ({nodes})")


def _lies_evenly(machine: Machine, mesh: Mapping[str, int], axis: str) -> bool:
    try:
        Group.of_axis(mesh, axis, machine.gpus_per_node)
    except CostError:
        return False
    return True


def _nearest(machine: Machine, mesh: Mapping[str, int], axis: str) -> list[int]:
    """The sizes of an axis next below and above its own with which the mesh fits the nodes."""
    size, others = mesh[axis], math.prod(mesh.values()) // mesh[axis]
    most = machine.gpus_per_node * machine.max_nodes // others

    def fits(number: int) -> bool:
        other = {**mesh, axis: number}
        return all(_lies_evenly(machine, other, name) for name in other)

    below = next((number for number in range(size - 1, 0, -1) if fits(number)), None)
    above = next((number for number in range(size + 1, most + 1) if fits(number)), None)
    return [number for number in (below, above) if number is not None]


def collective_costs(machine: Machine, mesh: Mapping[str, int], trace: StepTrace) -> tuple[CollectiveCost, ...]:
    """Each traced collective on the group of its axis. Raises CostError for what the machine cannot run."""
    costs = []
    for entry in trace.collectives:
        group = Group.of_axis(mesh, entry.axis, machine.gpus_per_node)
        one = collective_time(machine, entry.kind, entry.payload_bytes, group)
        wire_bytes = entry.count * entry.payload_bytes * wire_factor(entry.kind, group.gpus)
        beside = None
        if entry.beside is not None:
            beside = total([(operation_time(machine, op), op.count) for op in entry.beside], "scheduled beside it")
        costs.append(CollectiveCost(entry, link_of(group), wire_bytes, total([(one, entry.count)], one.basis), beside))
    return tuple(costs)


def step_cost(machine: Machine, mesh: Mapping[str, int], trace: StepTrace) -> StepCost:
    """The time of a traced step, by part, each with its 90 % interval. Raises CostError."""
    check_mesh(machine, mesh)
    collectives = collective_costs(machine, mesh, trace)
    passes = dict.fromkeys([*(op.pass_ for op in trace.operations), *(entry.pass_ for entry in trace.collectives)])
    parts: list[Part] = []
    for name in passes:
        work = _compute(machine, name, [op for op in trace.operations if op.pass_ == name])
        parts += work
        parts += _communication(name, work, [cost for cost in collectives if cost.entry.pass_ == name])
    parts.append(Part("step", "gaps, clocks, late ranks", _beside_parts(total([(part.time, 1) for part in parts], ""))))
    flops = sum(op.count * op.flops for op in trace.operations)
    step = total([(part.time, 1) for part in parts], "sum of parts")
    return StepCost(collectives, tuple(parts), step, flops, sum(op.count for op in trace.operations))


def _beside_parts(parts: Estimate) -> Estimate:
    seconds, low_s, high_s = (share * parts.seconds for share in BESIDE_PARTS)
    return Estimate(seconds, low_s, high_s, "as in published steps")


def operation_time(machine: Machine, op: Operation) -> Estimate:
    """One of an operation's `count`."""
    if op.kind == "matmul":
        return matmul_time(machine, op.m, op.n, op.k, op.dtype, max(op.batch, 1))
    if op.kind == "attention":
        return attention_time(machine, op.flops, op.dtype, backward=op.pass_ == "backward")
    if op.kind == "memory":
        return memory_time(machine, op.moved_bytes)
    raise CostError(f"operation {op.name!r} of kind {op.kind!r}: there are matmul, attention, memory")


def _compute(machine: Machine, pass_: str, operations: Iterable[Operation]) -> list[Part]:
    by_kind: dict[str, list[tuple[Estimate, float]]] = defaultdict(list)
    for op in operations:
        by_kind[op.kind].append((operation_time(machine, op), op.count))
    return [Part(pass_, WORK[kind], total(timed, timed[0][0].basis)) for kind, timed in sorted(by_kind.items())]


def _communication(pass_: str, work: Sequence[Part], costs: Sequence[CollectiveCost]) -> list[Part]:
    """Awaited collectives by axis, then the others by axis with what of them shows, then what hiding them cost."""
    parts: list[Part] = []
    awaited = [cost for cost in costs if not cost.entry.is_async]
    for axis in dict.fromkeys(cost.entry.axis for cost in awaited):
        own = [(cost.time, 1.0) for cost in awaited if cost.entry.axis == axis]
        parts.append(Part(pass_, f"{axis} collectives", total(own, "awaited where issued")))
    scheduled = [cost for cost in costs if cost.entry.is_async and cost.beside is not None]
    for axis in dict.fromkeys(cost.entry.axis for cost in scheduled):
        each = [_scheduled(cost) for cost in scheduled if cost.entry.axis == axis]
        exposed = total([(shown, 1.0) for shown, _ in each], "schedule of the program")
        parts.append(Part(pass_, f"{axis} collectives, exposed", exposed, sum(hidden for _, hidden in each)))
    pipelined = [cost for cost in costs if cost.entry.is_async and cost.beside is None]
    for axis in dict.fromkeys(cost.entry.axis for cost in pipelined):
        own_costs = [cost for cost in pipelined if cost.entry.axis == axis]
        links = {cost.link for cost in own_costs}
        beside = [(part.time, 1.0) for part in work]
        beside += [(cost.time, 1.0) for cost in awaited if not _share(cost.link, links)]
        running = total([(cost.time, 1.0) for cost in own_costs], "all")
        stages = max(cost.entry.count for cost in own_costs)
        shown, hidden = _pipelined(running, total(beside, "beside"), stages)
        parts.append(Part(pass_, f"{axis} collectives, exposed", shown, hidden))
    hidden_s = sum(part.hidden_s for part in parts)
    if hidden_s > 0:
        seconds, low_s, high_s = (share * hidden_s for share in LOST_BESIDE)
        lost = Estimate(seconds, low_s, high_s, "SMs that collectives hold, judged")
        parts.append(Part(pass_, "work slowed by overlap", lost))
    return parts


def _share(link: str, links: set[str]) -> bool:
    return link in links or "both" in links or link == "both"


def _scheduled(cost: CollectiveCost) -> tuple[Estimate, float]:
    """(what shows, hidden seconds) of all calls of a collective, each beside its own work: no first stage."""
    beside = total([(cost.beside or Estimate(0.0, 0.0, 0.0, ""), cost.entry.count)], "beside")
    return _pipelined(cost.time, beside, math.inf)


def _pipelined(running: Estimate, beside: Estimate, stages: float) -> tuple[Estimate, float]:
    """(what shows, hidden seconds) of collectives that take `running` beside work of `beside`, in `stages` pieces."""
    first = 1 / stages

    def shown(collective_s: float, work_s: float) -> float:
        return first * collective_s + (1 - first) * max(0.0, collective_s - work_s)

    # Collectives and work err each for itself, so their effects add up in squares.
    best = shown(running.seconds, beside.seconds)
    less = math.hypot(best - shown(running.low_s, beside.seconds), best - shown(running.seconds, beside.high_s))
    more = math.hypot(shown(running.high_s, beside.seconds) - best, shown(running.seconds, beside.low_s) - best)
    low_s = max(best - less, first * running.low_s)
    return Estimate(best, low_s, best + more, "pipeline beside other work"), running.seconds - best
