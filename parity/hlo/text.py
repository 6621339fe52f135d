"""HLO text as computations of instructions: as much of the grammar as a reader of collectives needs.

The text is what XLA's `HloModule::ToString` prints (`compiled.as_text()` in JAX): a header line, tables of source
locations, then one block a computation with one instruction a line, `%name = shape opcode(operands), key=value, ...`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from parity.contract import ContractError

# Bits of an element, and the name that the contract uses for it.
_ELEMENTS: dict[str, tuple[str, int]] = {
    "pred": ("bool", 8),
    "s4": ("int4", 4),
    "u4": ("uint4", 4),
    "f16": ("float16", 16),
    "bf16": ("bfloat16", 16),
    "c64": ("complex64", 64),
    "c128": ("complex128", 128),
    **{f"s{bits}": (f"int{bits}", bits) for bits in (8, 16, 32, 64)},
    **{f"u{bits}": (f"uint{bits}", bits) for bits in (8, 16, 32, 64)},
    **{f"f{bits}": (f"float{bits}", bits) for bits in (32, 64)},
    **{
        f"f8{form}": (f"float8_{form}", 8) for form in ("e4m3", "e4m3fn", "e4m3fnuz", "e4m3b11fnuz", "e5m2", "e5m2fnuz")
    },
    **{f"f8{form}": (f"float8_{form}", 8) for form in ("e3m4", "e8m0fnu")},
}

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[][(){},:]')
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([^\s=]+) = (?=\S)")
_HELPER = re.compile(r"/collectives\.py:\d+$")  # where every collective is called; who calls it says more
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([^]]*)\]")


@dataclass(frozen=True)
class Instruction:
    """One line of a computation; `rest` is everything after the operands, unparsed until asked for."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str

    @cached_property
    def attributes(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for part in split(self.rest):
            key, _, value = part.partition("=")
            if key == "device_ids":  # the second half of a replica group list: mesh['a'=2], device_ids=(..) {'a'}
                found["replica_groups"] += ", " + part
            elif key:
                found[key] = value
        return found

    def called(self, *keys: str) -> tuple[str, ...]:
        """The computations that these attributes name, `calls=%f` or `branch_computations={%f, %g}`."""
        values = [self.attributes[key] for key in keys if key in self.attributes]
        return tuple(name.strip(" %") for value in values for name in value.strip("{}").split(","))

    @property
    def metadata(self) -> str:
        return self.attributes.get("metadata", "")

    @property
    def op_name(self) -> str:
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.metadata)
        return found[1] if found else ""


@dataclass(frozen=True)
class Computation:
    name: str
    instructions: dict[str, Instruction]
    root: Instruction


@dataclass(frozen=True)
class Module:
    computations: dict[str, Computation]
    entry: str
    num_partitions: int
    source_lines: dict[str, str]  # stack frame id -> "file:line"

    def source_line(self, instruction: Instruction) -> str:
        found = re.search(r"stack_frame_id=(\d+)", instruction.metadata)
        return self.source_lines.get(found[1], "") if found else ""


def parse_module(text: str) -> Module:
    """Raises ContractError when the text is not that of one HLO module."""
    lines = text.splitlines()
    if not lines or not lines[0].startswith("HloModule"):
        raise ContractError("HLO text: the first line does not start with 'HloModule'; give compiled.as_text()")
    computations: dict[str, Computation] = {}
    entry = ""
    for header, body in _blocks(lines):
        words = header.split()
        name = words[words[0] == "ENTRY"].lstrip("%")
        computations[name] = _computation(name, body)
        entry = name if words[0] == "ENTRY" else entry
    if not entry:
        raise ContractError("HLO text: no ENTRY computation; the text is cut off")
    partitions = re.search(r"\bnum_partitions=(\d+)", lines[0])
    return Module(computations, entry, int(partitions[1]) if partitions else 1, _source_lines(lines))


def _blocks(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    header, body = "", list[str]()
    for line in lines:
        if header and line.startswith("}"):
            yield header, body
            header = ""
        elif header:
            body.append(line)
        elif line.endswith("{") and " -> " in line:
            header, body = line, []
    if header:
        raise ContractError(f"HLO text: computation {header.split('(')[0].strip()} has no end; the text is cut off")


def _computation(name: str, body: list[str]) -> Computation:
    instructions: dict[str, Instruction] = {}
    root = ""
    for line in filter(str.strip, body):
        start = _INSTRUCTION.match(line)
        if not start:
            raise ContractError(f"HLO text: not an instruction in %{name}: {line.strip()[:80]!r}")
        instructions[start[2]] = _instruction(start[2], line[start.end() :])
        root = start[2] if start[1] else root
    if not root:
        raise ContractError(f"HLO text: computation %{name} has no ROOT; the text is cut off")
    return Computation(name, instructions, instructions[root])


def _instruction(name: str, text: str) -> Instruction:
    shape_end = _closing(text, 0) if text[0] == "(" else text.index(" ")
    opcode_end = text.index("(", shape_end)
    operands_end = _closing(text, opcode_end)
    operands = tuple(re.findall(r"%([^\s,()]+)", text[opcode_end:operands_end]))
    return Instruction(name, text[:shape_end], text[shape_end:opcode_end].strip(), operands, text[operands_end:])


def _closing(text: str, start: int) -> int:
    """The index after the bracket that closes the one at `start`."""
    depth = 0
    for token in _TOKEN.finditer(text, start):
        depth += (token[0] in "([{") - (token[0] in ")]}")
        if depth == 0:
            return token.end()
    raise ContractError(f"HLO text: unbalanced brackets: {text[:80]!r}")


def split(text: str, separator: str = ",") -> list[str]:
    """Split at the commas (or colons) that are in no bracket and no string."""
    parts, depth, start = [], 0, 0
    for token in _TOKEN.finditer(text):
        depth += (token[0] in "([{") - (token[0] in ")]}")
        if token[0] == separator and depth == 0:
            parts.append(text[start : token.start()].strip())
            start = token.end()
    return [*parts, text[start:].strip()]


def trip_count(loop: Instruction) -> int | None:
    """How often a `while` runs, None where the compiler does not know it."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes.get("backend_config", ""))
    return int(known[1]) if known else None


def array_bytes(shape: str) -> list[tuple[str, int]]:
    """(dtype, bytes) of each array in a shape, tuples flattened: `(bf16[2,3], f32[])` -> bfloat16 12, float32 4."""
    arrays = []
    for element, dims in _ARRAY.findall(shape):
        if element not in _ELEMENTS:
            raise ContractError(f"HLO text: unknown element type {element!r} in shape {shape[:80]}")
        dtype, bits = _ELEMENTS[element]
        size = 1
        for dim in filter(None, dims.split(",")):
            size *= int(dim.removeprefix("<="))
        arrays.append((dtype, (size * bits + 7) // 8))
    return arrays


def _source_lines(lines: list[str]) -> dict[str, str]:
    """Follow StackFrames -> FileLocations -> FileNames, the tables above the computations.

    A frame in a helper leads to its caller's. Parents are numbered from 2: 1 stands for none.
    """
    tables: dict[str, dict[str, str]] = {}
    rows: dict[str, str] = {}
    for line in lines:
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            rows = tables.setdefault(line, {})
        elif line[:1].isdigit():
            key, _, row = line.partition(" ")
            rows[key] = row
    frames = tables.get("StackFrames", {})
    own, parents = {}, {}
    for frame, row in frames.items():
        location = tables["FileLocations"].get(_field("file_location_id", row), "")
        file = tables["FileNames"].get(_field("file_name_id", location), "").strip('"')
        own[frame] = f"{file}:{_field('line', location)}" if file else ""
        parents[frame] = str(int(_field("parent_frame_id", row) or 1) - 1)
    found = {}
    for frame in frames:
        caller = frame
        while _HELPER.search(own[caller]) and int(parents[caller]) < int(caller) and parents[caller] in own:
            caller = parents[caller]
        found[frame] = own[caller]
    return found


def _field(name: str, row: str) -> str:
    found = re.search(rf"\b{name}=(\d+)", row)
    return found[1] if found else ""
