"""Questions to a framework and its answers: what it sends and holds on devices that are not there, how fast those are
that are.

The harness writes `questions.json` (`parity.ask`). Time is asked of the ranks of a group, everything else of one
process without devices (`--role trace`); the answers stand in their logs. Bytes are of ONE device. Whole steps of
training are in `parity.step_contract`. Workers import this module, as they do `parity.contract`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from parity.contract import Collective
from parity.record import Record
from parity.step_contract import StepOrder

# For each mesh axis, outermost first: "R" replicated, "S0", "S1", ... the dim that it shards, "P" a partial sum.
Letters = tuple[str, ...]


@dataclass(frozen=True)
class PartitionQuestion(Record):
    """What does the partitioner insert, given how the operands are laid out, and perhaps how the result is wanted?"""

    id: str
    program: str  # "matmul", "linear", ...: a function of the operands, the same on both sides
    mesh: dict[str, int]  # axis name -> size, outermost first
    shapes: tuple[tuple[int, ...], ...]  # global, of each operand
    layouts: tuple[Letters, ...]  # of each operand
    output: Letters | None  # None leaves the layout of the result to the partitioner; but no partial sum is left
    dtype: str

    @property
    def num_devices(self) -> int:
        return math.prod(self.mesh.values())


@dataclass(frozen=True)
class ChainQuestion(Record):
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

    @property
    def num_devices(self) -> int:
        return math.prod(self.mesh.values())


@dataclass(frozen=True)
class PairsQuestion(Record):
    """How long do the products of `chain` take on the devices that there are, in turns with those by `gathered`?"""

    chain: ChainQuestion
    num_pairs: int

    @property
    def id(self) -> str:
        return self.chain.id


@dataclass(frozen=True)
class CollectiveQuestion(Record):
    """How long does this collective take over all ranks?"""

    kind: str  # one of parity.contract.KINDS
    num_ranks: int
    payload_bytes: int

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.num_ranks}/{self.payload_bytes}"


Question = PartitionQuestion | ChainQuestion | PairsQuestion | CollectiveQuestion | StepOrder
KINDS: dict[str, type[Question]] = {
    "partition": PartitionQuestion,
    "chain": ChainQuestion,
    "pairs": PairsQuestion,
    "collective": CollectiveQuestion,
    "step": StepOrder,
}
LIMITS_S: dict[type[Question], float] = {  # how long one may take before its worker is given up
    PartitionQuestion: 120.0,
    ChainQuestion: 120.0,
    PairsQuestion: 300.0,  # all pairs, and two programs to compile
    CollectiveQuestion: 120.0,  # all calls
    StepOrder: 600.0,  # the largest models take minutes to compile on a busy machine
}


def write_questions(run: Path, questions: Iterable[Question]) -> None:
    """Write `questions.json`."""
    names = {kind: name for name, kind in KINDS.items()}
    content = [{"kind": names[type(one)], "question": one.to_json()} for one in questions]
    (run / "questions.json").write_text(json.dumps(content), encoding="utf-8")


def read_questions(run: Path) -> dict[str, Question]:
    """The questions of a run, by id."""
    content = json.loads((run / "questions.json").read_text(encoding="utf-8"))
    questions = [KINDS[entry["kind"]].from_json(entry["question"]) for entry in content]
    return {question.id: question for question in questions}


@dataclass(frozen=True)
class Answer(Record):
    """One framework's answer to a PartitionQuestion or a ChainQuestion: `case`."""

    case: str
    collectives: tuple[Collective, ...] = ()  # as dispatched (torch)
    hlo: str | None = None  # the program, compiled for A100s (jax)
    on_cpu: tuple[Collective, ...] = ()  # the same choices as a CPU mesh carries them out, where it differs (torch)
    output: Letters = ()  # the layout of the result
    temporary_bytes: int | None = None  # the peak of what is held beside operands and results
    refused: str = ""  # why the framework does not take the question, in one line
    skipped: str = ""  # why it could not be put, in one line: no compiler for A100s (jax)
    refused_by_types: str = ""  # why explicit sharding refuses the program (jax)


@dataclass(frozen=True)
class PairedTimes(Record):
    """Seconds on one rank of the products of a PairsQuestion, and of the same by `gathered`, in turns."""

    case: str
    rank: int
    baseline_s: tuple[float, ...]
    times_s: tuple[float, ...]


@dataclass(frozen=True)
class Measured(Record):
    """Seconds on one rank of each call of a CollectiveQuestion; empty if the backend lacks the collective."""

    case: str
    rank: int
    times_s: tuple[float, ...]
