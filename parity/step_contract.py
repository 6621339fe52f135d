"""What crosses the border when a whole step of training is traced for a mesh of GPUs that nobody has at hand.

A StepOrder is a question (`parity.question_contract`), a StepTrace one framework's answer. Everything in a trace is of
ONE device of the mesh, from the shapes that it really has. JAX answers with the program that XLA compiled, and the
harness reads collectives and operations from that.
Standard library only; workers import it, as they do `parity.contract`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from parity.record import Record

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
class StepRequest(Record):
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


@dataclass(frozen=True)
class StepOrder(Record):
    """A request with the global shapes of what the model takes: a worker needs no table of models."""

    request: StepRequest
    params: dict[str, tuple[int, ...]]  # by canonical name
    batch: dict[str, tuple[int, ...]]  # the inputs in the order of the model's arguments, then "target"
    ids: tuple[str, ...]  # those of the batch that are integers

    @property
    def id(self) -> str:
        return self.request.id


@dataclass(frozen=True)
class TracedCollective(Record):
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


@dataclass(frozen=True)
class Operation(Record):
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


@dataclass(frozen=True)
class Memory(Record):
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


@dataclass(frozen=True)
class StepTrace(Record):
    """One framework's answer to one request; empty but for `skipped` where it could not be traced."""

    framework: str
    case: str  # the id of the request
    collectives: tuple[TracedCollective, ...] = ()
    operations: tuple[Operation, ...] = ()
    memory: Memory | None = None
    seconds: float = 0.0  # how long the tracing took
    skipped: str = ""  # why there is no trace, in one line, e.g. which extra to install
    notes: tuple[str, ...] = ()  # what is modelled how, in one line each
    hlo: str | None = None  # the program that XLA compiled (jax), until the harness has read it
