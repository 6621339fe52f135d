"""What crosses the border when a whole step of training is traced for a mesh of GPUs that nobody has at hand.

The harness writes `steps.json` (the orders); each framework's worker (`--role steps`) answers each with one StepTrace,
a line in `<framework>/steps.jsonl`. Everything in a trace is of ONE device of the mesh, from the shapes that it really
has. JAX's worker writes the program that XLA compiled, and the harness reads collectives and operations from that.
Standard library only; workers import it, as they do `parity.contract`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

OPERATIONS = ("matmul", "attention", "memory")


@dataclass(frozen=True)
class XlaFlags:
    """Flags that JAX's step is compiled with, on top of what compiling without a GPU takes."""

    flags: dict[str, bool | int]
    meaning: str  # for overlap, in words


# `--xla-flags`. With XLA's own flags a memory scheduler orders the program, which puts the end of nearly every
# collective right behind its start. "recommended": what NVIDIA's guide for LLMs in JAX names for overlap and for fully
# sharded parameters: the scheduler that hides latency, gathers and reduce-scatters moved to the trip of the loop before
# or after, and those of a block in one. Not its double buffering: of Llama 3 8B on fsdp=64, tp=4 it left the gathers of
# the forward pass without a product beside them.
# Source: https://docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance ("Optimization level", "FSDP").
XLA_FLAGS = {
    "default": XlaFlags({}, "its scheduler saves memory and seldom lets work run beside a collective"),
    "recommended": XlaFlags(
        {
            "xla_gpu_enable_latency_hiding_scheduler": True,
            "xla_gpu_enable_pipelined_all_gather": True,
            "xla_gpu_enable_pipelined_reduce_scatter": True,
            "xla_gpu_all_gather_combine_threshold_bytes": 8 * 2**30,
            "xla_gpu_reduce_scatter_combine_threshold_bytes": 8 * 2**30,
        },
        "its scheduler puts work between a collective's start and its end",
    ),
}


@dataclass(frozen=True)
class StepRequest:
    """One question: what does one GPU do, send and hold in a step of this model, in this plan, on this mesh?"""

    id: str
    layer: str  # e.g. "models.llama"
    plan: str  # e.g. "megatron", "sequence_parallel"
    style: str  # "auto", "typed" or "manual"
    mesh: dict[str, int]  # axis name -> size, outermost first, e.g. {"fsdp": 64, "tp": 4}
    dims: dict[str, int]  # dim letter -> size: B and S are of the whole batch, L is the number of blocks
    options: dict[str, Any]  # those of the layer's `build`
    dtype: str = "bfloat16"
    optimizer: bool = True  # whether the step ends with AdamW
    recompute: bool = False  # whether each block keeps its input only, and runs forward again in the backward pass
    gpus_per_node: int = 4
    xla_flags: str = "default"  # one of XLA_FLAGS; torch has no such choice

    @property
    def num_devices(self) -> int:
        return prod(self.mesh.values())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepRequest:
        return cls(**data)


@dataclass(frozen=True)
class StepOrder:
    """A request with the global shapes of what the model takes: a worker needs no table of models."""

    request: StepRequest
    params: dict[str, tuple[int, ...]]  # by canonical name
    batch: dict[str, tuple[int, ...]]  # the inputs in the order of the model's arguments, then "target"
    ids: tuple[str, ...]  # those of the batch that are integers

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "request": self.request.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepOrder:
        params, batch = ({name: tuple(shape) for name, shape in data[key].items()} for key in ("params", "batch"))
        return cls(StepRequest.from_json(data["request"]), params, batch, tuple(data["ids"]))


def read_orders(run: Path) -> dict[str, StepOrder]:
    """The steps to trace, by the id of the request."""
    orders = map(StepOrder.from_json, json.loads((run / "steps.json").read_text(encoding="utf-8"))["orders"])
    return {order.request.id: order for order in orders}


@dataclass(frozen=True)
class TracedCollective:
    """`count` calls of one collective, each with `payload_bytes` (S as nccl-tests defines it, as in parity.contract).

    `count` has the trips of the loops in it: a collective in a loop of 32 counts 32. Where the number of trips is
    unknown, `loop_trips` is None and `count` is that of one trip.
    """

    kind: str  # one of parity.contract.KINDS
    axis: str  # mesh axis; several joined by "+" in mesh order
    dtype: str
    payload_bytes: int
    count: int = 1
    pass_: str = "forward"  # one of parity.contract.PASSES; the JSON key is "pass"
    loop_trips: int | None = 1  # how often the loop that it is in runs; 1 outside of loops, None where unknown
    is_async: bool = False  # started and awaited apart, with a product of matrices between the two
    source_line: str = ""  # e.g. "torch_tp/mlp.py:131"
    op_name: str = ""  # what the framework calls it
    # The own work that is scheduled between the start and the end of one call; None where the trace has no schedule.
    beside: tuple[Operation, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["pass"] = data.pop("pass_")
        data["beside"] = None if self.beside is None else [one.to_json() for one in self.beside]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TracedCollective:
        rest = {key: value for key, value in data.items() if key not in ("pass", "beside")}
        beside = data["beside"]
        found = None if beside is None else tuple(map(Operation.from_json, beside))
        return cls(pass_=data["pass"], beside=found, **rest)


@dataclass(frozen=True)
class Operation:
    """`count` times the same work of one GPU: batch x [m, k] @ [k, n], or a pass over memory.

    flops and moved_bytes (read and written) are of ONE of the `count`. m, n, k, batch are 0 for kind "memory".
    An "attention" operation is a whole fused attention; scores that are written to memory are matmuls and memory.
    """

    pass_: str
    kind: str  # one of OPERATIONS
    m: int = 0
    n: int = 0
    k: int = 0
    batch: int = 0
    dtype: str = "bfloat16"
    flops: int = 0
    moved_bytes: int = 0
    count: int = 1
    name: str = ""

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["pass"] = data.pop("pass_")
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Operation:
        rest = {key: value for key, value in data.items() if key != "pass"}
        return cls(pass_=data["pass"], **rest)


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU, by what they hold.

    Parameters, gradients and optimizer as they lie at the end of the step, the rest at its peak.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int  # kept from the forward pass for the backward pass
    temporaries: int  # everything else that lives at the peak
    total: int  # the peak; not always the sum: at the peak the gradients may not be there yet
    source: str = ""  # "XLA memory analysis" or "torch tracer"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Memory:
        return cls(**data)


@dataclass(frozen=True)
class StepTrace:
    """One framework's answer to one request; empty but for `skipped` where it could not be traced."""

    framework: str
    request: str  # its id
    collectives: tuple[TracedCollective, ...] = ()
    operations: tuple[Operation, ...] = ()
    memory: Memory | None = None
    seconds: float = 0.0  # how long the tracing took
    skipped: str = ""  # why there is no trace, in one line, e.g. which extra to install
    notes: tuple[str, ...] = field(default=())  # what is modelled how, in one line each

    def to_json(self) -> dict[str, Any]:
        return {
            "framework": self.framework,
            "request": self.request,
            "collectives": [entry.to_json() for entry in self.collectives],
            "operations": [entry.to_json() for entry in self.operations],
            "memory": None if self.memory is None else self.memory.to_json(),
            "seconds": self.seconds,
            "skipped": self.skipped,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepTrace:
        return cls(
            framework=data["framework"],
            request=data["request"],
            collectives=tuple(map(TracedCollective.from_json, data["collectives"])),
            operations=tuple(map(Operation.from_json, data["operations"])),
            memory=None if data["memory"] is None else Memory.from_json(data["memory"]),
            seconds=data["seconds"],
            skipped=data["skipped"],
            notes=tuple(data["notes"]),
        )
