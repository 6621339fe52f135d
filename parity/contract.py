"""What crosses the border between a worker process and the harness: cases go in, results come out.

A run is a directory. The harness writes `run.json` (the cases) and `inputs/` (state and batch); each rank of each
framework appends one JSON line per event to `<framework>/rank<r>.jsonl` and writes the arrays that it holds to
`<framework>/arrays/`. Everything after that (check, compare, report) reads files only, so a finished run can be judged
again where neither framework is installed. How these files are written and read is in `files_contract`.

Workers import this module and the others named `*_contract`. Together they need the standard library, NumPy, ml_dtypes
(the NumPy type of bfloat16) and safetensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from parity.record import Record

SCHEMA_VERSION = 2

FRAMEWORKS = ("torch", "jax")
STYLES = ("auto", "typed", "manual")
# "step": output, loss, gradients of one step. "train": loss, norm, parameters and moments after each of several.
TASKS = ("step", "train")
PASSES = ("forward", "backward", "optimizer")
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "permute")

DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "bool": np.dtype(np.bool_),
}


class ContractError(Exception):
    """A file of a run that cannot be read as what it should be; the message is one line for the user."""


@dataclass(frozen=True)
class Case(Record):
    """One question put to both frameworks: this layer, this plan, this style, on this mesh, in this dtype.

    Shardings are not part of a case: it names a plan, each side writes the plan natively and reports the layout
    that it ended up with.
    """

    id: str
    layer: str
    plan: str
    variant: str  # the name of the options, and of the parameters that the layer then has
    style: str
    mesh: dict[str, int]  # axis name -> size, outermost first
    dims: dict[str, int]  # dim letter -> global size
    options: dict[str, Any]
    dtype: str
    operands: str  # "normal" (rounding is judged) or "integers" (every summation order gives the same bits)
    seed: int
    inputs: str  # key of the file under inputs/: cases with the same state and batch share it
    task: str = "step"  # one of TASKS
    recipe: dict[str, Any] = field(default_factory=dict)  # the hyperparameters of "train"

    @property
    def program(self) -> str:
        """The id without seed and operands: cases of one program differ in their data only."""
        return self.id.removesuffix(f"/seed{self.seed}").replace("/exact-", "/")

    @property
    def num_devices(self) -> int:
        return int(np.prod(list(self.mesh.values())))

    @property
    def num_batches(self) -> int:
        """How many batches the case goes through, forward and backward."""
        return int(self.recipe["num_steps"] * self.recipe["num_microbatches"]) if self.task == "train" else 1


@dataclass(frozen=True)
class Collective(Record):
    """`count` calls of one collective, each with `payload_bytes`.

    payload_bytes is S as nccl-tests defines it, in bytes a device: the whole buffer of an all-reduce, the gathered
    output of an all-gather, the whole input of a reduce-scatter, the per-rank buffer of an all-to-all, the message of
    a broadcast or a permute.
    """

    kind: str  # one of KINDS
    axis: str  # mesh axis; several joined by "+" in mesh order
    dtype: str
    payload_bytes: int
    count: int = 1
    pass_: str = "forward"  # one of PASSES; the JSON key is "pass"
    source: str = ""  # where it came from, for people: an op name, a formula


@dataclass(frozen=True)
class Shard(Record):
    """Where the part of a tensor that one device holds lies in the whole tensor."""

    global_shape: tuple[int, ...]
    index: tuple[tuple[int, int], ...]  # [start, stop) for each dim
    dtype: str
    partial: tuple[str, ...] = ()  # mesh axes over which the value is still a partial sum


@dataclass(frozen=True)
class Timing(Record):
    """Seconds of one step on one rank: the first call (trace, compile, run), then the median of `repeats` more."""

    cold_s: float | None  # None where the program was compiled for an earlier case
    steady_s: float
    repeats: int
    device: str  # e.g. "cpu", "NVIDIA A100-SXM4-40GB"
    backend: str  # who carries the collectives: "gloo", "nccl"


@dataclass(frozen=True)
class Result(Record):
    """What the device of one rank says of one case. The arrays themselves are in `arrays`, keyed as `shards` is."""

    case: str
    rank: int
    coordinates: dict[str, int]
    shards: dict[str, Shard]
    timing: Timing
    arrays: str  # file name under <framework>/arrays/
    collectives: tuple[Collective, ...] | None = None  # as dispatched (torch)
    hlo: str | None = None  # file name under <framework>/hlo/: compiled for the devices that ran (jax)


@dataclass(frozen=True)
class Trace(Record):
    """What a framework says of one case without running it on the devices of this machine.

    For JAX: the program that XLA compiles for A100s, and the collectives that its jaxpr declares.
    """

    case: str
    hlo: str | None  # file name under <framework>/hlo/
    declared: tuple[Collective, ...]
    skipped: str = ""  # why there is no `hlo`, in one line
