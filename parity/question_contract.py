"""Questions about devices that are not there, and the answers of a framework: what it sends, and what it holds.

The harness writes `questions.json`, each framework's worker (`--role questions`, one process, no devices) answers with
one Answer each in its log. Bytes are of ONE device. Workers import this module, as they do `parity.contract`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parity.contract import Collective

# For each mesh axis, outermost first: "R" replicated, "S0", "S1", ... the dim that it shards, "P" a partial sum.
Letters = tuple[str, ...]


@dataclass(frozen=True)
class PartitionQuestion:
    """What does the partitioner insert, given how the operands are laid out, and perhaps how the result is wanted?"""

    id: str
    program: str  # "matmul", "linear", ...: a function of the operands, the same on both sides
    mesh: dict[str, int]  # axis name -> size, outermost first
    shapes: tuple[tuple[int, ...], ...]  # global, of each operand
    layouts: tuple[Letters, ...]  # of each operand
    output: Letters | None  # None leaves the layout of the result to the partitioner; but no partial sum is left
    dtype: str
    topic: str = "partition"

    @property
    def num_devices(self) -> int:
        return math.prod(self.mesh.values())


@dataclass(frozen=True)
class ChainQuestion:
    """What do the products x w_1 w_2 ... send and hold, multiplied by one plan on a mesh?

    x has `rows` rows, w_i is [widths[i-1], widths[i]].
    """

    id: str
    plan: str
    mesh: dict[str, int]
    rows: int
    widths: tuple[int, ...]
    panel: int  # of plan "summa"; 0 where it has none
    backward: bool  # whether the gradients of x and of every w are asked for, too
    dtype: str
    topic: str = "chain"

    @property
    def num_devices(self) -> int:
        return math.prod(self.mesh.values())


Question = PartitionQuestion | ChainQuestion


def question_from_json(data: Mapping[str, Any]) -> Question:
    """The question that `dataclasses.asdict` made this of."""
    if data["topic"] == "chain":
        return ChainQuestion(**{**data, "widths": tuple(data["widths"])})
    layouts, output = tuple(map(tuple, data["layouts"])), data["output"]
    shapes = tuple(map(tuple, data["shapes"]))
    return PartitionQuestion(
        **{**data, "shapes": shapes, "layouts": layouts, "output": None if output is None else tuple(output)}
    )


def read_questions(run: Path) -> dict[str, Question]:
    """The questions of a run, by id."""
    return {data["id"]: question_from_json(data) for data in json.loads((run / "questions.json").read_text())}


@dataclass(frozen=True)
class Answer:
    """One framework's answer to the question `case`."""

    case: str
    collectives: tuple[Collective, ...] = ()  # as dispatched (torch)
    hlo: str | None = None  # file name under <framework>/hlo/: compiled for A100s (jax)
    on_cpu: tuple[Collective, ...] = ()  # the same choices as a CPU mesh carries them out, where it differs (torch)
    output: Letters = ()  # the layout of the result
    temporary_bytes: int | None = None  # the peak of what is held beside operands and results
    refused: str = ""  # why the framework does not take the question, in one line
    skipped: str = ""  # why it could not be put, in one line: no compiler for A100s (jax)
    refused_by_types: str = ""  # why explicit sharding refuses the program (jax)

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "collectives": [entry.to_json() for entry in self.collectives],
            "on_cpu": [entry.to_json() for entry in self.on_cpu],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Answer:
        lists = {name: tuple(map(Collective.from_json, data[name])) for name in ("collectives", "on_cpu")}
        return cls(**{**data, **lists, "output": tuple(data["output"])})


@dataclass(frozen=True)
class PairedTimes:
    """Seconds on one rank of the products of the ChainQuestion `case`, and of the same by `gathered`, in turns."""

    case: str
    rank: int
    baseline_s: tuple[float, ...]
    times_s: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PairedTimes:
        return cls(data["case"], data["rank"], tuple(data["baseline_s"]), tuple(data["times_s"]))
