"""The collectives that one execution of a compiled XLA program issues."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from parity.contract import Collective, ContractError
from parity.hlo.groups import axis_of_groups, axis_of_pairs, parse_groups, parse_pairs
from parity.hlo.overlap import work_beside
from parity.hlo.passes import latest, passes_of_name, passes_of_operand
from parity.hlo.text import Computation, Instruction, Module, array_bytes, parse_module, split, trip_count
from parity.step_contract import Operation

_KINDS = {
    "all-reduce": "all_reduce",
    "all-gather": "all_gather",
    "reduce-scatter": "reduce_scatter",
    "all-to-all": "all_to_all",
    "collective-broadcast": "broadcast",
    "collective-permute": "permute",
}
_CALLERS = ("fusion", "while", "call", "conditional")
_CALLED = ("calls", "body", "to_apply", "branch_computations", "true_computation", "false_computation")
_UNCOUNTED = ("ragged-all-to-all", "send", "recv")


@dataclass(frozen=True)
class HloCollective:
    """One collective of the HLO text: what it moves of one dtype, for one pass."""

    kind: str  # one of parity.contract.KINDS
    axis: str  # mesh axes joined by "+"; "?" where the groups are those of no axes
    dtype: str
    payload_bytes: int  # as parity.contract.Collective defines it
    count: int  # executions in one step; a loop of unknown length counts once
    loop_count: int | None  # iterations of the loops around it: 1 outside loops, None where one is unknown
    is_async: bool  # a product is scheduled between its start and its end: work that takes long enough to hide it
    pass_: str
    op_name: str
    source_line: str  # "file:line"
    num_operands: int  # more than 1: the compiler combined several collectives
    beside: tuple[Operation, ...]  # all work between, of one call; of the largest part only of what one call moves

    def to_collective(self) -> Collective:
        source = self.op_name or "(the compiler gives no name)"
        return Collective(self.kind, self.axis, self.dtype, self.payload_bytes, self.count, self.pass_, source)


@dataclass(frozen=True)
class Ledger:
    """All collectives in schedule order, and what the text leaves open about them, one line each.

    notes say how something was told; gaps say what could not be counted: then the bytes are not the program's.
    """

    calls: tuple[HloCollective, ...]
    notes: tuple[str, ...]
    gaps: tuple[str, ...] = ()

    @property
    def collectives(self) -> tuple[Collective, ...]:
        return tuple(call.to_collective() for call in self.calls)


def read_collectives(text: str, mesh: Mapping[str, int]) -> Ledger:
    """What one execution of the program issues, a device.

    text: scheduled HLO, `compiled.as_text()`. mesh: axis name -> size, outermost first; partition ids are row-major
    in it. Collectives among one device (axes of size 1) move nothing and are left out. Of a conditional one branch
    is counted if all issue the same, every branch otherwise, with a note. Raises ContractError when the text is
    not HLO, or was compiled for another number of devices than the mesh has.
    """
    module = parse_module(text)
    if module.num_partitions != math.prod(mesh.values()):
        sizes = ", ".join(f"{name}={size}" for name, size in mesh.items())
        raise ContractError(f"HLO text: compiled for {module.num_partitions} devices, the mesh is {sizes}")
    reader = _Reader(module, mesh)
    calls = reader.computation(module.entry)
    return Ledger(calls, tuple(dict.fromkeys(reader.notes)), tuple(dict.fromkeys(reader.gaps)))


class _Reader:
    def __init__(self, module: Module, mesh: Mapping[str, int]) -> None:
        self.module = module
        self.mesh = mesh
        self.notes: list[str] = []
        self.gaps: list[str] = []
        self.beside: dict[str, dict[str, tuple[Operation, ...]]] = {}  # computation -> start -> work
        self.axes: dict[str, tuple[str | None, int]] = {}  # replica groups as spelled -> axis, group size

    def computation(self, name: str) -> tuple[HloCollective, ...]:
        """The collectives of one execution of a computation and of what it calls."""
        if name not in self.module.computations:
            raise ContractError(f"HLO text: computation %{name} is called and not there; the text is cut off")
        computation = self.module.computations[name]
        found: list[HloCollective] = []
        for instruction in computation.instructions.values():
            found += self.instruction(computation, instruction)
        return tuple(found)

    def instruction(self, computation: Computation, instruction: Instruction) -> tuple[HloCollective, ...]:
        opcode = instruction.opcode
        base = opcode.removesuffix("-start")
        if base in _KINDS:
            return self.collective(computation, instruction, _KINDS[base], started=base != opcode)
        if base in _UNCOUNTED:
            self.gaps.append(f"%{instruction.name}: {opcode} is not counted, its bytes are not in the text")
        if opcode == "while":
            return self.loop(instruction)
        if opcode == "conditional":
            return self.conditional(instruction)
        if opcode == "async-start":
            is_async, beside = self.is_async(computation, instruction), self.work_beside(computation, instruction)
            wrapped = self.called(instruction, "calls")
            largest = max((call.payload_bytes for call in wrapped), default=0)
            return tuple(
                replace(call, is_async=is_async, beside=beside if call.payload_bytes == largest else ())
                for call in wrapped
            )
        if opcode == "call":
            return self.called(instruction, "to_apply")
        return () if opcode.endswith(("-done", "-update")) else self.called(instruction, "calls", "called_computations")

    def called(self, instruction: Instruction, *keys: str) -> tuple[HloCollective, ...]:
        if not any(f"{key}=" in instruction.rest for key in keys):
            return ()
        return tuple(call for name in instruction.called(*keys) for call in self.computation(name))

    def loop(self, instruction: Instruction) -> tuple[HloCollective, ...]:
        body, condition = self.called(instruction, "body"), self.called(instruction, "condition")
        trips = trip_count(instruction)
        if trips is not None:
            return _repeated(condition, trips + 1) + _repeated(body, trips)
        if body or condition:
            self.gaps.append(f"%{instruction.name}: a loop of unknown length, its collectives are counted once")
        return tuple(replace(call, loop_count=None) for call in condition + body)

    def conditional(self, instruction: Instruction) -> tuple[HloCollective, ...]:
        names = instruction.called("branch_computations", "true_computation", "false_computation")
        branches = [self.computation(name) for name in names]
        if len({tuple(sorted(map(_moved, branch))) for branch in branches}) == 1:
            return branches[0]
        self.gaps.append(f"%{instruction.name}: the branches issue different collectives, all are counted, one runs")
        return tuple(call for branch in branches for call in branch)

    def collective(
        self, computation: Computation, instruction: Instruction, kind: str, started: bool
    ) -> tuple[HloCollective, ...]:
        axis, group_size = self.axis(instruction, kind)
        if not axis:
            return ()
        # A start returns (operands, results, ...), but for the all-reduce, which is updated in place.
        shape = instruction.shape
        results = split(shape[1:-1])[1] if started and kind != "all_reduce" else shape
        scale = group_size if kind == "reduce_scatter" else 1
        arrays = array_bytes(results)
        passes = self.passes(computation, instruction, len(arrays))
        payload: dict[tuple[str, str], int] = {}
        for (dtype, size), pass_ in zip(arrays, passes, strict=True):
            payload[dtype, pass_] = payload.get((dtype, pass_), 0) + size * scale
        is_async = started and self.is_async(computation, instruction)
        beside, largest = self.work_beside(computation, instruction) if is_async else (), max(payload.values())
        return tuple(
            HloCollective(
                kind=kind,
                axis=axis,
                dtype=dtype,
                payload_bytes=size,
                count=1,
                loop_count=1,
                is_async=is_async,
                pass_=pass_,
                op_name=instruction.op_name,
                source_line=self.module.source_line(instruction),
                # The tuple form of an all-to-all has one operand a peer.
                num_operands=1 if kind == "all_to_all" else len(instruction.operands),
                beside=beside if size == largest else (),
            )
            for (dtype, pass_), size in payload.items()
        )

    def axis(self, instruction: Instruction, kind: str) -> tuple[str, int]:
        """The axes and the size of a group; no axis when nothing moves."""
        if kind == "permute":
            return axis_of_pairs(parse_pairs(instruction.attributes["source_target_pairs"]), self.mesh), 1
        text = instruction.attributes.get("replica_groups", "{}")
        if text not in self.axes:
            groups = parse_groups(text, self.module.num_partitions)
            self.axes[text] = axis_of_groups(groups, self.mesh), len(groups[0])
        axis, group_size = self.axes[text]
        if axis is None:
            self.notes.append(f"%{instruction.name}: replica groups {text[:80]} are those of no set of mesh axes")
        return "?" if axis is None else axis, group_size

    def work_beside(self, computation: Computation, start: Instruction) -> tuple[Operation, ...]:
        """What is computed between a start and its end."""
        if computation.name not in self.beside:
            self.beside[computation.name] = work_beside(self.module, computation)
        return self.beside[computation.name][start.name]

    def passes(self, computation: Computation, instruction: Instruction, num_arrays: int) -> list[str]:
        """The pass of each array that the collective returns."""
        found = named = passes_of_name(instruction.op_name)
        if not named:
            found = [passes_of_operand(self.module, computation, name) for name in instruction.operands]
        if len(found) != num_arrays:
            found = [set().union(*found)] * num_arrays
        told = [latest(passes or {"forward"}) for passes in found]
        if not named:
            how = "the names of what feeds it" if all(found) else "no name at all"
            self.notes.append(f"%{instruction.name}: no op_name; taken as {'+'.join(sorted(set(told)))} by {how}")
        if any(len(passes) > 1 for passes in found):
            self.notes.append(f"%{instruction.name}: serves several passes, counted for the last of them")
        return told

    def is_async(self, computation: Computation, start: Instruction) -> bool:
        """Whether a product is scheduled before the end of what is started: a copy or a slice hides nothing.

        XLA:GPU marks a start whose end follows at once. An end in another computation comes a trip of the loop later.
        """
        if '"is_sync":true' in start.attributes.get("backend_config", ""):
            return False
        names = {start.name}
        schedule = list(computation.instructions.values())
        for instruction in schedule[schedule.index(start) + 1 :]:
            if names & {*instruction.operands} and instruction.opcode.endswith(("-done", "-update")):
                if instruction.opcode.endswith("-done"):
                    return False
                names.add(instruction.name)
            elif self.multiplies(instruction):
                return True
        return True

    def multiplies(self, instruction: Instruction) -> bool:
        """Whether it, or what it calls, has a product of matrices in it."""
        if instruction.opcode in ("dot", "convolution") or 'custom_call_target="__cublas' in instruction.rest:
            return True
        called = instruction.called(*_CALLED) if instruction.opcode in _CALLERS else ()
        bodies = (self.module.computations[name].instructions.values() for name in called)
        return any(self.multiplies(one) for body in bodies for one in body)


def _repeated(calls: tuple[HloCollective, ...], trips: int) -> tuple[HloCollective, ...]:
    return tuple(
        replace(call, count=call.count * trips, loop_count=call.loop_count and call.loop_count * trips)
        for call in calls
        if trips
    )


def _moved(call: HloCollective) -> tuple[str, str, str, int, int]:
    return call.kind, call.axis, call.dtype, call.payload_bytes, call.count
