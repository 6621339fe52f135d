"""Read and check a machine file: every error is one line that names the file, the key and what would work."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from parity.cost.group import KINDS, wire_factor
from parity.cost.machine import Band, Curve, Gpu, Machine, MachineError, Ring, Tree

MACHINES = Path(__file__).resolve().parent.parent / "machines"
PARTS: dict[str, type] = {"curves": Curve, "rings": Ring, "trees": Tree, "bands": Band}

T = TypeVar("T")


def list_machines() -> list[str]:
    """Names of the machines that come with the project."""
    return sorted(path.stem for path in MACHINES.glob("*.toml"))


def load_machine(name: str | Path) -> Machine:
    """The machine of a file (a path that ends in .toml) or of a name of `list_machines`. Raises MachineError."""
    path = Path(name) if str(name).endswith(".toml") else MACHINES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(list_machines())
        if str(name).endswith(".toml"):
            raise MachineError(f"machine file {name}: there is no such file; known by name: {known}")
        raise MachineError(f"machine {str(name)!r}: not known; known: {known}; or a .toml file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MachineError(f"{path}: cannot be read ({error})") from error
    return parse_machine(text, str(path))


def parse_machine(text: str, where: str = "machine file") -> Machine:
    """The machine that a file's text describes; with `like = "NAME"`, fitted parts that it lacks are that machine's."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MachineError(f"{where}: not TOML ({error})") from error
    like = data.pop("like", None)
    parts: dict[str, tuple[Any, ...]] = {}
    for key, part in PARTS.items():
        entries = data.pop(key, [])
        if not isinstance(entries, list):
            raise MachineError(f"{where}: {key} must be a list of tables, [[{key}]]")
        parts[key] = tuple(_build(part, entry, f"{where}: {key}[{index}]") for index, entry in enumerate(entries))
    if "gpu" not in data:
        raise MachineError(f"{where}: the table [gpu] is missing")
    gpu = _build(Gpu, data.pop("gpu"), f"{where}: gpu")
    if like is not None:
        if like not in list_machines():
            raise MachineError(f"{where}: like = {like!r} is not a known machine; known: {', '.join(list_machines())}")
        parent = load_machine(like)
        parts = {key: _merge(own, getattr(parent, key)) for key, own in parts.items()}
    machine = _build(Machine, {**data, "gpu": gpu, **parts}, where)
    _check_whole(machine, where)
    return machine


def _merge(own: tuple[Any, ...], parents: tuple[Any, ...]) -> tuple[Any, ...]:
    """Own entries, and those of the parent of which there is no own: a curve or ring of that size, a band's scope."""

    def key(entry: Any) -> tuple[Any, ...]:
        if isinstance(entry, Curve):
            return entry.kind, entry.gpus, entry.in_place
        return (entry.scope,) if isinstance(entry, Band) else (entry.gpus_per_node,)

    taken = {key(entry) for entry in own}
    return own + tuple(entry for entry in parents if key(entry) not in taken)


def _build(part: type[T], entry: Any, where: str) -> T:
    """`entry` as a `part`: no key missing, none unknown, each figure of its kind and possible."""
    if not isinstance(entry, dict):
        raise MachineError(f"{where}: must be a table")
    known = {field.name: field for field in fields(part)}  # type: ignore[arg-type]
    for key in entry:
        if key not in known:
            raise MachineError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")
    values = {}
    for key, field in known.items():
        if key in entry:
            values[key] = _value(entry[key], str(field.type), f"{where}: {key}", key)
        elif field.default is MISSING:
            raise MachineError(f"{where}: {key} is missing")
    return part(**values)


# These may be zero: a fit can find no latency of its own in them.
MAY_BE_ZERO = {"start_s", "hop_s", "level_s", "min_bytes", "launch_s", "unseen_spread", "kernel_start_s"}


def _value(value: Any, kind: str, where: str, key: str) -> Any:
    if kind in ("str", "bool | None"):
        if not isinstance(value, str if kind == "str" else bool):
            raise MachineError(f"{where} = {value!r}: must be {'text' if kind == 'str' else 'true or false'}")
        return value
    if kind == "tuple[float, ...]":
        if not isinstance(value, list) or not value:
            raise MachineError(f"{where}: must be a list of figures")
        return tuple(_figure(item, where, key in MAY_BE_ZERO) for item in value)
    if kind == "dict[str, float]":
        if not isinstance(value, dict) or not value:
            raise MachineError(f"{where}: must be a table of figures by dtype")
        return {name: _figure(item, f"{where}.{name}", False) for name, item in value.items()}
    if kind == "int":
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise MachineError(f"{where} = {value!r}: must be a whole number >= 1")
        return value
    return _figure(value, where, key in MAY_BE_ZERO) if kind == "float" else value


def _figure(value: Any, where: str, zero: bool) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise MachineError(f"{where} = {value!r}: must be a finite figure {'>= 0' if zero else '> 0'}")
    return float(value)


def _check_whole(machine: Machine, where: str) -> None:
    """What no single figure shows: knots in order and in pairs, known words, nothing fitted missing."""
    if machine.topology not in ("mesh", "switch"):
        raise MachineError(f"{where}: topology = {machine.topology!r}: must be mesh or switch")
    for key in ("curves", "bands"):
        if not getattr(machine, key):
            raise MachineError(f'{where}: [[{key}]] is missing; fit it with calibrate or take it by like = "NAME"')
    for curve in machine.curves:
        if curve.kind not in KINDS or curve.gpus < 2:
            raise MachineError(
                f"{where}: curves: {curve.kind!r} of {curve.gpus} GPUs; known: {', '.join(KINDS)}, >= 2 GPUs"
            )
        place = f"{where}: curves {curve.kind} of {curve.gpus} GPUs"
        _check_knots(curve.payload_bytes, curve.time_s, place)
        busbw = wire_factor(curve.kind, curve.gpus) * curve.payload_bytes[-1] / curve.time_s[-1]
        if busbw > machine.nvlink_bytes_per_s:
            raise MachineError(
                f"{place}: {busbw / 1e9:.0f} GB/s at the last knot, and nvlink_bytes_per_s is "
                f"{machine.nvlink_bytes_per_s / 1e9:.0f} GB/s; one of them is wrong"
            )
    for ring in machine.rings:
        for times in (ring.start_s, ring.hop_s):
            _check_knots(ring.message_bytes, times, f"{where}: rings of {ring.gpus_per_node} GPUs a node")
    for tree in machine.trees:
        _check_knots(tree.payload_bytes, tree.level_s, f"{where}: trees of {tree.gpus_per_node} GPUs a node")
    for band in machine.bands:
        if band.scope not in ("node", "nodes") or not band.low <= 1 <= band.high:
            raise MachineError(f"{where}: bands: scope must be node or nodes, and low <= 1 <= high; found {band}")
    if machine.max_nodes > 1 and "nodes" not in {band.scope for band in machine.bands}:
        raise MachineError(f'{where}: no [[bands]] with scope = "nodes", and max_nodes is {machine.max_nodes}')


def _check_knots(x: Iterable[float], y: Iterable[float], where: str) -> None:
    x, y = list(x), list(y)
    if len(x) != len(y):
        raise MachineError(f"{where}: {len(x)} knots and {len(y)} times; both lists must be equally long")
    if any(b <= a for a, b in pairwise(x)):
        raise MachineError(f"{where}: the knots must rise")
