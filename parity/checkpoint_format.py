"""The files of a sharded checkpoint: safetensors, one file per rank, and an index of where each shard lies.

    DIR/index.json                    version; for each tensor shape, dtype, shards (file, key, index ranges, checksums)
    DIR/shard-00000.safetensors       the shards of rank 0: under the tensor's name if it is whole, else "NAME[0:8,4:8]"

Names and layouts are canonical (`blocks.0.attention.q.w` is [in, out]), so either framework reads it at any tp degree.
A directory appears complete or not at all. A reader reads only the rows (of dim 0) that it needs, in groups of about
GROUP_BYTES, each of which has its checksum: what is read is checked, and what is not needed is not read.

Workers import this module beside `parity.contract`, as the format is the same for both frameworks.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from parity.contract import DTYPES, ContractError, Shard
from parity.files_contract import save_arrays

VERSION = 1
GROUP_BYTES = 1 << 20
Ranges = Sequence[tuple[int, int]]  # [start, stop) for each dim


class CheckpointError(ContractError):
    """A checkpoint that cannot be written or read; one line that names the file and the tensor."""


@dataclass(frozen=True)
class Stored:
    """One shard of a tensor in a file."""

    file: str
    key: str
    index: tuple[tuple[int, int], ...]
    checksums: tuple[int, ...]  # CRC-32 of each group of rows

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Stored:
        ranges = tuple((int(start), int(stop)) for start, stop in data["index"])
        return cls(data["file"], data["key"], ranges, tuple(data["checksums"]))


@dataclass(frozen=True)
class Tensor:
    """A whole tensor of a checkpoint."""

    shape: tuple[int, ...]
    dtype: str
    shards: tuple[Stored, ...]


# -------------------------------------------------------------------------------------------------------- writing


def unfinished(directory: Path) -> Path:
    """Where a checkpoint is until it is complete."""
    return directory.with_name(directory.name + ".part")


def begin(directory: Path) -> None:
    """Called by one rank, before the others write. Raises CheckpointError if `directory` exists."""
    if directory.exists():
        raise CheckpointError(f"{directory} exists already: a checkpoint is never overwritten; give another directory")
    shutil.rmtree(unfinished(directory), ignore_errors=True)  # what a crash left
    unfinished(directory).mkdir(parents=True)


def write_rank(directory: Path, rank: int, shards: Sequence[tuple[str, Shard, np.ndarray]]) -> None:
    """Called by every rank with its shards by tensor name; replicas are written by one rank."""
    part, file = unfinished(directory), f"shard-{rank:05d}.safetensors"
    arrays: dict[str, np.ndarray] = {}
    records = []
    for name, shard, values in shards:
        if shard.partial:
            raise CheckpointError(f"{directory}: {name}: is a partial sum over {'+'.join(shard.partial)}, not a value")
        whole = all(span == (0, size) for span, size in zip(shard.index, shard.global_shape, strict=True))
        key = name if whole else f"{name}[{ranges_text(shard.index)}]"
        arrays[key] = values
        stored = Stored(file, key, shard.index, checksums(values))
        records.append({"name": name, "shape": shard.global_shape, "dtype": shard.dtype, "shard": asdict(stored)})
    save_arrays(part / file, arrays)
    (part / f"shard-{rank:05d}.json").write_text(json.dumps(records))


def finish(directory: Path) -> None:
    """Called by one rank after all have written: merge their entries into the index, check and publish it."""
    part = unfinished(directory)
    tensors: dict[str, dict[str, Any]] = {}
    notes = sorted(part.glob("shard-*.json"))
    for path in notes:
        for record in json.loads(path.read_text()):
            whole = {"shape": record["shape"], "dtype": record["dtype"]}
            entry = tensors.setdefault(record["name"], {**whole, "shards": []})
            if {key: entry[key] for key in whole} != whole:
                raise CheckpointError(f"{path}: {record['name']}: {whole}, another rank has {entry}")
            entry["shards"].append(record["shard"])
    for name, tensor in read_index({"version": VERSION, "tensors": tensors}, part).items():
        check_cover(part, name, tensor)
    with (part / "index.json").open("w") as file:
        json.dump({"version": VERSION, "tensors": tensors}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for path in notes:
        path.unlink()
    os.replace(part, directory)


def checksums(values: np.ndarray) -> tuple[int, ...]:
    """CRC-32 of each group of rows."""
    rows = values.reshape(values.shape or (1,))
    step = group_rows(rows.shape, rows.dtype)
    return tuple(zlib.crc32(rows[i : i + step].tobytes()) for i in range(0, len(rows), step))


def group_rows(shape: Sequence[int], dtype: np.dtype) -> int:
    """How many rows a checksum covers: about GROUP_BYTES, at least one row."""
    return max(1, GROUP_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))


def ranges_text(index: Ranges) -> str:
    """`0:8,4:8`."""
    return ",".join(f"{start}:{stop}" for start, stop in index)


# -------------------------------------------------------------------------------------------------------- reading


def read_index(content: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """The tensors of an index. Raises CheckpointError for what is no index, or one of another version."""
    try:
        if content["version"] != VERSION:
            raise CheckpointError(f"{where}: version {content['version']} of the format; this one reads {VERSION}")
        return {
            name: Tensor(tuple(entry["shape"]), entry["dtype"], tuple(map(Stored.from_json, entry["shards"])))
            for name, entry in content["tensors"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where}: damaged: {type(error).__name__} {error}") from error


def check_cover(where: Path, name: str, tensor: Tensor) -> None:
    """Raises CheckpointError if the shards of a tensor overlap, leave a hole, or lie outside of it."""
    for shard in tensor.shards:
        inside = len(shard.index) == len(tensor.shape)
        if not inside or any(not 0 <= a <= b <= n for (a, b), n in zip(shard.index, tensor.shape, strict=True)):
            raise CheckpointError(f"{where}: {name}: {shard.key} lies outside of the shape {list(tensor.shape)}")
    for one, other in combinations(tensor.shards, 2):
        if all(a < b for a, b in overlap(one.index, other.index)):
            raise CheckpointError(f"{where}: {name}: {one.file} and {other.file} overlap in {one.key}, {other.key}")
    held = sum(math.prod(stop - start for start, stop in shard.index) for shard in tensor.shards)
    if held != (size := math.prod(tensor.shape)):
        raise CheckpointError(f"{where}: {name}: a hole: its shards hold {held} of {size} elements")


def overlap(one: Ranges, other: Ranges) -> list[tuple[int, int]]:
    """Where two ranges meet; empty in a dim where start >= stop."""
    return [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True)]


class Checkpoint:
    """A checkpoint to read from. Raises CheckpointError for one that is missing, damaged, or has holes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        path = directory / "index.json"
        try:
            content = json.loads(path.read_text())
        except OSError as error:
            raise CheckpointError(f"{directory} is no checkpoint: index.json {error.strerror}") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: damaged: {error}") from error
        self.tensors = read_index(content, path)
        for name, tensor in self.tensors.items():
            check_cover(path, name, tensor)

    def check_names(self, wanted: Sequence[str]) -> None:
        """Raises CheckpointError unless it has exactly these tensors."""
        for name in wanted:
            if name not in self.tensors:
                raise CheckpointError(f"{self.directory}/index.json: there is no tensor {name}")
        if more := sorted(set(self.tensors) - set(wanted)):
            raise CheckpointError(f"{self.directory}/index.json: {more[0]}: the model has no such tensor")

    def read(self, name: str, shape: Sequence[int], dtype: str, index: Ranges) -> np.ndarray:
        """The part [start, stop) in each dim of a tensor that must have this shape and dtype; checksums are checked."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self.directory}/index.json: there is no tensor {name}")
        if (tensor.shape, tensor.dtype) != (tuple(shape), dtype):
            found = f"{tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape)}"
            raise CheckpointError(f"{self.directory}/index.json: {name} is {found}")
        got = np.empty([stop - start for start, stop in index], DTYPES[dtype])
        for shard in tensor.shards:
            common = overlap(shard.index, index)
            if all(start < stop for start, stop in common):
                inside = [(a - start, b - start) for (a, b), (start, _) in zip(common, shard.index, strict=True)]
                to = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(common, index, strict=True))
                got[to] = self._read_shard(name, tensor, shard, inside)
        return got

    def _read_shard(self, name: str, tensor: Tensor, shard: Stored, inside: Ranges) -> np.ndarray:
        path = self.directory / shard.file
        shape, dtype = [stop - start for start, stop in shard.index], DTYPES[tensor.dtype]
        try:
            with safetensors.safe_open(path, "numpy") as file:
                stored = file.get_slice(shard.key)
                if stored.get_shape() != shape:
                    raise CheckpointError(f"{path}: {name} has shape {stored.get_shape()}, the index says {shape}")
                step = group_rows(shape, dtype)
                start, stop = inside[0] if inside else (0, 1)
                first, last = start // step, -(-stop // step)
                rows = stored[first * step : min(last * step, shape[0])] if shape else file.get_tensor(shard.key)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path}: {name} cannot be read: {error}") from error
        rows = np.asarray(rows)
        if rows.dtype != dtype:
            raise CheckpointError(f"{path}: {name} is {rows.dtype}, the index says {dtype}")
        if checksums(rows) != shard.checksums[first:last]:
            raise CheckpointError(f"{path}: {name} is corrupted: the checksum of {shard.key} does not match")
        if not shape:
            return rows
        own = (slice(start - first * step, stop - first * step), *(slice(a, b) for a, b in inside[1:]))
        part: np.ndarray = rows[own]
        return part

    def verify(self) -> None:
        """Read everything."""
        for name, tensor in self.tensors.items():
            for shard in tensor.shards:
                self.read(name, tensor.shape, tensor.dtype, shard.index)
