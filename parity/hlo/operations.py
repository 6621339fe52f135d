"""What one device computes in one execution of a compiled XLA program: its products, and what the rest moves.

    matmul    a call of cuBLAS: batch x [m, k] [k, n], from its `dot_dimension_numbers`
    memory    any other instruction that runs as a kernel, fusions above all: the bytes that it reads and writes

A fusion reads of an operand what its slices take, where nothing else uses it, and writes of a result that it updates in
place what is new: as XLA's own HloCostAnalysis counts. Loops count as often as they run.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from parity.hlo.passes import latest, passes_of_name, passes_of_operand
from parity.hlo.text import Computation, Instruction, Module, array_bytes, trip_count
from parity.step_contract import Operation

# They run no kernel of this device's own: names, views, control flow, and the collectives, which have their ledger.
_FREE = {
    "parameter",
    "constant",
    "bitcast",
    "tuple",
    "get-tuple-element",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
}
_SLICES = ("dynamic-slice", "slice", "gather")
_VIEWS = ("bitcast", "get-tuple-element")
_CALLED = ("to_apply", "calls", "branch_computations", "true_computation", "false_computation")


def read_operations(module: Module) -> tuple[Operation, ...]:
    """The operations of one execution, alike ones together, in the order of the first of each."""
    return _counted(_walk(module, module.entry, 1))


def operations_of(module: Module, computation: Computation, instruction: Instruction) -> tuple[Operation, ...]:
    """Those of one execution of an instruction of the computation, and of what it calls."""
    return _counted(_runs(module, computation, instruction, 1))


def stacked_bytes(module: Module) -> int:
    """The bytes that the loops of the forward pass leave for those of the backward pass: one entry a trip of each."""
    total = 0
    for instruction in module.computations[module.entry].instructions.values():
        if instruction.opcode == "while" and _passes(instruction) == {"forward"}:
            trips = trip_count(instruction)
            body = module.computations[instruction.called("body")[0]]
            for index, (operand, shape) in enumerate(zip(body.root.operands, _elements(instruction), strict=True)):
                made = body.instructions[operand]
                is_kept = made.opcode == "get-tuple-element" and made.attributes["index"] == str(index)
                if not is_kept and _dims(shape)[:1] == [trips]:
                    total += _size(shape)
    return total


def uncounted_work(module: Module) -> list[str]:
    """What the operations leave open, one line each: loops of which nobody knows how often they run."""
    every = (one for computation in module.computations.values() for one in computation.instructions.values())
    loops = (one for one in every if one.opcode == "while" and trip_count(one) is None)
    return [f"%{loop.name}: a loop of unknown length, its work is counted once" for loop in loops]


def _counted(found: Iterable[tuple[Operation, int]]) -> tuple[Operation, ...]:
    counts: Counter[Operation] = Counter()
    for operation, trips in found:
        counts[operation] += trips
    return tuple(replace(operation, count=count) for operation, count in counts.items())


def _walk(module: Module, name: str, trips: int) -> Iterator[tuple[Operation, int]]:
    computation = module.computations[name]
    for instruction in computation.instructions.values():
        yield from _runs(module, computation, instruction, trips)


def _runs(
    module: Module, computation: Computation, instruction: Instruction, trips: int
) -> Iterator[tuple[Operation, int]]:
    opcode = instruction.opcode.removesuffix("-start")
    if opcode == "while":
        yield from _walk(module, instruction.called("body")[0], trips * (trip_count(instruction) or 1))
    elif instruction.opcode.endswith(("-done", "-update")):
        return  # what its start has begun is counted there
    elif opcode in ("call", "async", "conditional"):
        for called in instruction.called(*_CALLED):
            yield from _walk(module, called, trips)
    elif opcode not in _FREE:
        yield _operation(module, computation, instruction), trips


def _operation(module: Module, computation: Computation, instruction: Instruction) -> Operation:
    passes = _passes(instruction) or passes_of_operand(module, computation, instruction.name)
    pass_ = latest(passes or {"forward"})
    target = instruction.attributes.get("custom_call_target", "").strip('"')
    if target.startswith("__cublas"):
        return _matmul(computation, instruction, pass_, target)
    dtype = max(array_bytes(instruction.shape) or [("", 0)], key=lambda array: array[1])[0]
    return Operation(
        pass_, "memory", dtype=dtype, moved_bytes=_moved(module, computation, instruction), name=instruction.opcode
    )


def _matmul(computation: Computation, instruction: Instruction, pass_: str, target: str) -> Operation:
    config = json.loads(instruction.attributes["backend_config"])["gemm_backend_config"]
    numbers = config["dot_dimension_numbers"]
    left, right = (computation.instructions[name] for name in instruction.operands[:2])
    batch, k, m = _split_dims(left, numbers["lhs_batch_dimensions"], numbers["lhs_contracting_dimensions"])
    _, _, n = _split_dims(right, numbers["rhs_batch_dimensions"], numbers["rhs_contracting_dimensions"])
    _, result = array_bytes(instruction.shape)[0]  # the second one is the workspace
    ((dtype, _),) = array_bytes(left.shape)  # that of the operands tells how fast: the result may be wider
    moved = result + sum(_size(computation.instructions[name].shape) for name in instruction.operands)
    return Operation(pass_, "matmul", m, n, k, batch, dtype, 2 * batch * m * n * k, moved, name=target)


def _split_dims(operand: Instruction, batch: Sequence[str], contracting: Sequence[str]) -> tuple[int, int, int]:
    """The products of the batch dims, of the contracting dims, and of the others."""
    dims = _dims(operand.shape)
    groups = [[dims[int(dim)] for dim in group] for group in (batch, contracting)]
    named = {int(dim) for dim in (*batch, *contracting)}
    return math.prod(groups[0]), math.prod(groups[1]), math.prod(s for i, s in enumerate(dims) if i not in named)


def _moved(module: Module, computation: Computation, instruction: Instruction) -> int:
    """The bytes that one kernel reads and writes."""
    shapes = [computation.instructions[name].shape for name in instruction.operands]
    if instruction.opcode != "fusion":
        if instruction.opcode in _SLICES:
            return 2 * _size(instruction.shape)
        if instruction.opcode == "dynamic-update-slice":
            return 2 * _size(shapes[1])
        return _size(instruction.shape) + sum(map(_size, shapes))
    inner = module.computations[instruction.called("calls")[0]]
    users: dict[str, list[Instruction]] = {}
    for one in inner.instructions.values():
        for operand in one.operands:
            users.setdefault(operand, []).append(one)
    read = sum(_read(one, users) for one in inner.instructions.values() if one.opcode == "parameter")
    return read + _written(inner, inner.root)


def _read(value: Instruction, users: dict[str, list[Instruction]]) -> int:
    """What a fusion reads of a parameter, or of a view of it."""
    total = 0
    for user in users.get(value.name, []):
        if user.opcode in _SLICES and user.operands[0] == value.name:
            total += _size(user.shape)
        elif user.opcode in _VIEWS:
            total += _read(user, users)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != value.name:
            return _size(value.shape)
    return min(total, _size(value.shape))


def _written(computation: Computation, value: Instruction) -> int:
    """What a fusion writes for its result: of one that is updated in place, the update."""
    if value.opcode == "tuple":
        return sum(_written(computation, computation.instructions[name]) for name in value.operands)
    if value.opcode == "dynamic-update-slice":
        return _size(computation.instructions[value.operands[1]].shape)
    if value.opcode == "bitcast":
        return _written(computation, computation.instructions[value.operands[0]])
    return _size(value.shape)


def _passes(instruction: Instruction) -> set[str]:
    return set().union(*passes_of_name(instruction.op_name))


def _elements(instruction: Instruction) -> list[str]:
    """The shapes of a tuple's arrays, in order."""
    return re.findall(r"[a-z][a-z0-9]*\[[^]]*\]", instruction.shape)


def _dims(shape: str) -> list[int]:
    """`bf16[2,3]{1,0}` -> [2, 3]; of a tuple, those of its first array."""
    found = re.search(r"\[([^]]*)\]", shape)
    return [int(dim.removeprefix("<=")) for dim in found[1].split(",") if dim] if found else []


def _size(shape: str) -> int:
    return sum(size for _, size in array_bytes(shape))
