"""What a compiled XLA program computes between the start and the end of each collective."""

from __future__ import annotations

from parity.hlo.operations import operations_of
from parity.hlo.text import Computation, Module
from parity.step_contract import Operation


def work_beside(module: Module, computation: Computation) -> dict[str, tuple[Operation, ...]]:
    """Name of a start -> the operations scheduled before its end, in one execution of the computation.

    Work that runs beside several is counted for the one that started first: no second of it hides two.
    """
    found: dict[str, list[Operation]] = {}
    flying: dict[str, str] = {}  # the latest name of what is in flight -> that of its start, oldest first
    for instruction in computation.instructions.values():
        opcode = instruction.opcode
        if opcode.endswith("-done"):
            flying.pop(instruction.operands[0], None)
        elif opcode.endswith("-update"):
            flying = {instruction.name if key == instruction.operands[0] else key: flying[key] for key in flying}
        elif flying:
            found[next(iter(flying.values()))] += operations_of(module, computation, instruction)
        if opcode.endswith("-start") and opcode != "copy-start":
            flying[instruction.name] = instruction.name
            found[instruction.name] = []
    return {name: tuple(operations) for name, operations in found.items()}
