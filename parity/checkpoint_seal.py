"""Checksums of a checkpoint in a framework's own format, so that what is torn or cut off is an error of one line.

    DIR/checksums-00000.json      of the files that rank 0 has looked at: {"num_ranks": n, "files": {name: CRC-32}}

PyTorch's distributed checkpoint reads zeros in the middle of a file, or a flipped bit, as numbers. Orbax finds damage
of numbers, by an error of many lines, but not of every file. Each rank reads its share of the files, at their end.

Workers import this module beside `parity.checkpoint_format`, for the same reason.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from parity.checkpoint_format import CheckpointError

CHUNK_BYTES = 1 << 22


def seal(directory: Path, rank: int, num_ranks: int) -> None:
    """Every rank, when all have written: note the checksums of its share of the files."""
    files = {name: checksum(directory / name) for name in files_of(directory)[rank::num_ranks]}
    with (directory / f"checksums-{rank:05d}.json").open("w") as file:
        json.dump({"num_ranks": num_ranks, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def verify(directory: Path, rank: int, num_ranks: int) -> None:
    """Every rank, before any reads: raise CheckpointError unless its share of the files is as it was sealed."""
    noted = read_notes(directory)
    for name in sorted(noted)[rank::num_ranks]:
        try:
            found = checksum(directory / name)
        except OSError as error:
            raise CheckpointError(f"{directory / name} cannot be read: {error.strerror}") from None
        if found != noted[name]:
            raise CheckpointError(f"{directory / name} is corrupted: its checksum does not match")


def read_notes(directory: Path) -> dict[str, int]:
    """The checksums of all files, by name. Raises CheckpointError for notes that are missing or damaged."""
    paths = sorted(directory.glob("checksums-*.json"))
    if not paths:
        what = (
            "has no checksums-*.json: it was not completed, or not written by this"
            if directory.is_dir()
            else "is not there"
        )
        raise CheckpointError(f"{directory} {what}")
    noted: dict[str, int] = {}
    for path in paths:
        try:
            content = json.loads(path.read_text())
            num_ranks, files = int(content["num_ranks"]), dict(content["files"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: damaged: {type(error).__name__} {error}") from None
        if num_ranks != len(paths):
            raise CheckpointError(f"{directory}: {num_ranks} ranks wrote checksums-*.json, {len(paths)} are there")
        noted |= files
    return noted


def files_of(directory: Path) -> list[str]:
    """All files below a directory by their path in it, but for the notes."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    names = (path.relative_to(directory).as_posix() for path in paths)
    return sorted(name for name in names if not name.startswith("checksums-"))


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value


def check_contents(
    directory: Path, held: dict[str, tuple[tuple[int, ...], str]], wanted: dict[str, tuple[tuple[int, ...], str]]
) -> None:
    """Raise CheckpointError unless a checkpoint holds exactly these tensors, each of this (shape, dtype).

    Both frameworks read tensors of another dtype by converting them.
    """
    for name, (shape, dtype) in wanted.items():
        if name not in held:
            raise CheckpointError(f"{directory}: there is no tensor {name}")
        if held[name] != (shape, dtype):
            found_shape, found_dtype = held[name]
            raise CheckpointError(
                f"{directory}: {name} is {found_dtype} {list(found_shape)}, expected {dtype} {list(shape)}"
            )
    for name in held:
        if name not in wanted:
            raise CheckpointError(f"{directory}: {name}: the model has no such tensor")


def raise_first(errors: Iterable[str], cause: BaseException | None) -> None:
    """Raise CheckpointError with the first line that is not empty, if there is one: with those of all ranks, all raise.

    cause: what this rank's own line comes from.
    """
    for error in errors:
        if error:
            raise CheckpointError(error) from cause
