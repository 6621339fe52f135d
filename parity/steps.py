"""Whole steps of training, traced by both frameworks side by side for GPUs that this machine does not have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from parity.ask import OnEvent, ask
from parity.cases.family import CaseError, Family
from parity.cases.notation import shape_of
from parity.hlo import read_collectives
from parity.hlo.ledger import HloCollective
from parity.hlo.operations import read_operations, stacked_bytes, uncounted_work
from parity.hlo.text import parse_module
from parity.presets import FAMILIES
from parity.step_contract import StepOrder, StepRequest, StepTrace, TracedCollective


def family_of_request(request: StepRequest) -> Family:
    """The layouts and formulas of the request's model, with as many blocks. Raises CaseError for a plan it has not."""
    num_blocks = request.dims["L"]
    if request.layer == "models.vit":
        plans = [name.partition("/")[2] for name in FAMILIES if name.startswith("models.vit/")]
        if request.plan not in plans:
            raise CaseError(f"models.vit: the plan {request.plan!r} is unknown; there are {', '.join(plans)}")
        return FAMILIES[f"models.vit/{request.plan}"](num_blocks)
    return FAMILIES[request.layer](num_blocks, plan=request.plan)


def padded(request: StepRequest) -> StepRequest:
    """The request with rows of the table that fsdp and tp, or x and y, can cut, as training scripts pad them."""
    if "V" not in request.dims:
        return request
    fsdp, tp, x, y = (request.mesh.get(axis, 1) for axis in ("fsdp", "tp", "x", "y"))
    ways = fsdp * tp * math.lcm(x, y)
    return replace(request, dims={**request.dims, "V": -(-request.dims["V"] // ways) * ways})


def make_order(request: StepRequest) -> StepOrder:
    """The request, padded, with the global shapes of parameters and batch."""
    request, family = padded(request), family_of_request(request)
    (variant,) = family.variants
    params = {name: shape_of(family.tensors[name], request.dims) for name in variant.params}
    batch = {name: shape_of(family.tensors[name], request.dims) for name in family.batch}
    return StepOrder(request, params, {**batch, "target": shape_of(family.tensors["y"], request.dims)}, (*family.ids,))


def trace_steps(
    requests: Sequence[StepRequest], commands: Mapping[str, Sequence[str]], on_event: OnEvent = lambda _: None
) -> dict[str, list[StepTrace]]:
    """framework -> one StepTrace a request, in their order; what a framework refuses is skipped, with its words.

    Raises what `ask` raises.
    """

    def failed(framework: str, request: str, why: str) -> StepTrace:
        return StepTrace(framework, request, skipped=why)

    orders = [make_order(request) for request in requests]
    found = ask(StepTrace, orders, commands, on_event, failed)
    return {
        framework: [read_program(answers[request.id], request) for request in requests]
        for framework, answers in found.items()
    }


def read_program(trace: StepTrace, request: StepRequest) -> StepTrace:
    """The trace with what stands in the compiled program, if it has one: collectives, operations, what loops keep."""
    if trace.hlo is None:
        return trace
    ledger, module = read_collectives(trace.hlo, request.mesh), parse_module(trace.hlo)
    gaps = [f"figures are too low or too high: {gap}" for gap in (*ledger.gaps, *uncounted_work(module))]
    memory = trace.memory
    if memory is not None:
        kept = stacked_bytes(module)
        memory = replace(memory, activations=kept, temporaries=max(memory.temporaries - kept, 0))
    return replace(
        trace,
        collectives=tuple(map(traced, ledger.calls)),
        operations=read_operations(module),
        memory=memory,
        notes=(*trace.notes, *ledger.notes, *gaps),
        hlo=None,
    )


def traced(call: HloCollective) -> TracedCollective:
    """A collective of the compiled program as the contract has it."""
    file, _, line = call.source_line.rpartition(":")
    where = file[file.rfind("jax_tp/") :] if "jax_tp/" in file else file
    return TracedCollective(
        kind=call.kind,
        axis=call.axis,
        dtype=call.dtype,
        payload_bytes=call.payload_bytes,
        count=call.count,
        pass_=call.pass_,
        loop_trips=call.loop_count,
        is_async=call.is_async,
        source_line=f"{where}:{line}" if file else "",
        op_name=call.op_name,
        beside=call.beside,
    )
