"""The files of a run: event logs as JSON lines, arrays as safetensors; never pickle. Workers import this module."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from parity.contract import DTYPES, ContractError


@dataclass(frozen=True)
class EventLog:
    """An append-only file of JSON lines, each stamped and on disk before `append` returns."""

    path: Path

    def append(self, event: str, **content: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time_s": time.time(), **content}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_events(path: Path) -> list[dict[str, Any]]:
    """The whole lines of an event log; a last line that a crash cut off is left out."""
    if not path.exists():
        return []
    events = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ContractError(f"{path}: not a line of JSON: {line[:60]!r}") from error
    return events


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as safetensors, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.array(array, order="C") for name, array in arrays.items()}
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        file.write(safetensors.numpy.save(contiguous))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "BOOL": "bool",
}


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `save_arrays` wrote, by name; safetensors' own NumPy reader knows no bfloat16.

    Raises ContractError for a missing, torn or foreign file.
    """
    try:
        tensors = safetensors.deserialize(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise ContractError(f"{path}: not a readable safetensors file ({error})") from error
    return {
        name: np.frombuffer(info["data"], DTYPES[_SAFETENSORS_DTYPES[info["dtype"]]]).reshape(info["shape"])
        for name, info in sorted(tensors)  # safetensors gives them in another order each time
    }
