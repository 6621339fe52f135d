"""Whole steps of training, traced by both frameworks side by side for GPUs that this machine has not got."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from parity.cases.family import CaseError, Family
from parity.cases.notation import shape_of
from parity.files_contract import read_events
from parity.hlo import read_collectives
from parity.hlo.ledger import HloCollective
from parity.hlo.operations import read_operations, stacked_bytes, uncounted_work
from parity.hlo.text import parse_module
from parity.launch import Group, Progress, run_group
from parity.presets import FAMILIES
from parity.step_contract import StepOrder, StepRequest, StepTrace, TracedCollective
from parity.worker_contract import file_name

START_LIMIT_S = 120.0
STEP_LIMIT_S = 600.0


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
    """The request with rows of the table that fsdp and tp can cut, as training scripts pad them."""
    if "V" not in request.dims:
        return request
    ways = request.mesh.get("fsdp", 1) * request.mesh.get("tp", 1)
    return replace(request, dims={**request.dims, "V": -(-request.dims["V"] // ways) * ways})


def make_order(request: StepRequest) -> StepOrder:
    """The request, padded, with the global shapes of parameters and batch."""
    request, family = padded(request), family_of_request(request)
    (variant,) = family.variants
    params = {name: shape_of(family.tensors[name], request.dims) for name in variant.params}
    batch = {name: shape_of(family.tensors[name], request.dims) for name in family.batch}
    return StepOrder(request, params, {**batch, "target": shape_of(family.tensors["y"], request.dims)}, (*family.ids,))


def trace_steps(
    requests: Sequence[StepRequest],
    commands: Mapping[str, Sequence[str]],
    on_event: Callable[[Progress], None] = lambda _: None,
) -> dict[str, list[StepTrace]]:
    """framework -> one StepTrace a request, in their order; what a framework refuses is skipped, with its words.

    commands: framework -> how to start its worker, up to and without RUN_DIR, e.g. ("python", "-m", "torch_tp.worker").
    All frameworks at once. Raises LaunchError when a command cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="parity-steps-") as folder, ThreadPoolExecutor(len(commands)) as pool:
        run_dir = Path(folder)
        orders = [make_order(request).to_json() for request in requests]
        (run_dir / "steps.json").write_text(json.dumps({"orders": orders}), encoding="utf-8")

        def trace(framework: str) -> list[StepTrace]:
            group = Group(framework, "steps", 1, tuple(commands[framework]), "cpu", STEP_LIMIT_S, START_LIMIT_S)
            run_group(run_dir, group, [request.id for request in requests], on_event)
            return [read_trace(run_dir, framework, request) for request in requests]

        return dict(zip(commands, pool.map(trace, commands), strict=True))


def read_trace(run_dir: Path, framework: str, request: StepRequest) -> StepTrace:
    """What the worker says of the request; with the collectives of the compiled program, where it wrote one."""
    for event in read_events(run_dir / framework / "steps.jsonl"):
        if event["event"] == "step" and event["step"]["request"] == request.id:
            trace = StepTrace.from_json(event["step"])
            hlo = run_dir / framework / "hlo" / file_name(request.id, "hlo")
            return read_program(trace, hlo.read_text(encoding="utf-8"), request) if hlo.exists() else trace
    errors = [
        event["message"]
        for event in read_events(run_dir / framework / "launcher.jsonl")
        if event["event"] == "error" and event["case"] == request.id
    ]
    return StepTrace(framework, request.id, skipped=errors[-1])


def read_program(trace: StepTrace, hlo: str, request: StepRequest) -> StepTrace:
    """The trace with what stands in the compiled program: collectives, operations, and what its loops keep."""
    ledger, module = read_collectives(hlo, request.mesh), parse_module(hlo)
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
