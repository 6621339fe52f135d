"""One step of a model on a machine, predicted from what each framework's trace says that a GPU does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from parity.cost import Estimate, Group, total
from parity.cost.memory import RESERVED_BYTES, Fit, fit_of
from parity.cost.step import CollectiveCost, StepCost, link_of, step_cost
from parity.predict.request import Question
from parity.reconcile import Reconciliation, reconcile
from parity.step_contract import StepTrace

SCHEMA_VERSION = 1
NOT_COUNTED = "a host too slow to keep the GPU busy, other jobs' traffic, reading data, logging and checkpoints"


@dataclass(frozen=True)
class LedgerRow:
    """The collectives of one pass, kind, axis and dtype: bytes and time of all calls together, of one GPU."""

    pass_: str
    kind: str
    axis: str
    link: str
    dtype: str
    count: int
    payload_bytes: int
    wire_bytes: float
    time: Estimate
    is_async: bool

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.pass_, self.kind, self.axis, self.dtype


@dataclass(frozen=True)
class FrameworkStep:
    """What is predicted of one framework's step; nothing but `trace` where it was not traced."""

    trace: StepTrace
    cost: StepCost | None = None
    fit: Fit | None = None
    reconciliation: Reconciliation | None = None  # of what was traced with the plan's closed formula

    @property
    def skipped(self) -> str:
        return self.trace.skipped

    def ledger(self) -> list[LedgerRow]:
        """By pass, kind, axis and dtype, in the order of the trace."""
        groups: dict[tuple[str, str, str, str], list[CollectiveCost]] = {}
        for one in self.cost.collectives if self.cost else ():
            entry = one.entry
            groups.setdefault((entry.pass_, entry.kind, entry.axis, entry.dtype), []).append(one)
        return [_row(members) for members in groups.values()]


def _row(members: Sequence[CollectiveCost]) -> LedgerRow:
    entry = members[0].entry
    return LedgerRow(
        entry.pass_,
        entry.kind,
        entry.axis,
        members[0].link,
        entry.dtype,
        sum(one.entry.count for one in members),
        sum(one.entry.count * one.entry.payload_bytes for one in members),
        sum(one.wire_bytes for one in members),
        total([(one.time, 1) for one in members], members[0].time.basis),
        all(one.entry.is_async for one in members),
    )


@dataclass(frozen=True)
class Prediction:
    """The answers of both frameworks to one question."""

    question: Question
    steps: Mapping[str, FrameworkStep]  # by framework

    def to_json(self) -> dict[str, Any]:
        """Everything, with units in the names; times are predicted, each with its 90 % interval."""
        question = self.question
        machine, preset = question.machine, question.preset
        return {
            "schema_version": SCHEMA_VERSION,
            "predicted": True,
            "machine": {"name": machine.name, "description": machine.description, "source": machine.source},
            "model": preset.name,
            "parameters": preset.num_parameters(),
            "plan": question.plan,
            "style": question.style,
            "dtype": question.dtype,
            "activation_checkpointing": question.is_checkpointed,
            "xla_flags": question.xla_flags,
            "mesh": dict(question.mesh),
            "gpus": question.num_gpus,
            "batch": question.batch,
            "seq": question.seq,
            "axes": {axis: axis_json(question, axis) for axis in question.mesh},
            "frameworks": {name: step_json(question, step) for name, step in self.steps.items()},
            "not_counted": NOT_COUNTED,
        }


def axis_json(question: Question, axis: str) -> dict[str, Any]:
    """Where an axis lies on the machine."""
    group = Group.of_axis(question.mesh, axis, question.machine.gpus_per_node)
    return {**asdict(group), "gpus_per_node": group.gpus_per_node, "link": link_of(group)}


def step_json(question: Question, step: FrameworkStep) -> dict[str, Any]:
    """One framework's half of the JSON."""
    if step.cost is None:
        return {"skipped": step.skipped}
    cost = step.cost
    parts = [
        {"pass": part.pass_, "name": part.name, "hidden_s": part.hidden_s, **part.time.to_json()} for part in cost.parts
    ]
    return {
        "skipped": None,
        "trace_s": step.trace.seconds,
        "ledger": [{name.rstrip("_"): value for name, value in asdict(row).items()} for row in step.ledger()],
        "calls": [call_json(one) for one in cost.collectives],
        "reconciliation": None if step.reconciliation is None else step.reconciliation.to_json(),
        "memory_bytes": memory_json(step),
        "step": cost.step.to_json(),
        "parts": parts,
        "tokens_per_s_per_gpu": question.tokens / cost.step.seconds / question.num_gpus,
        "flops": cost.flops,
        "mean_kernel_s": cost.mean_kernel_s,
        "flops_utilization": utilization(question, cost),
        "notes": list(step.trace.notes),
    }


def call_json(one: CollectiveCost) -> dict[str, Any]:
    """One traced collective; `beside_s` is the own work scheduled beside each call, None where nothing tells."""
    beside_s = None if one.beside is None else one.beside.seconds
    entry = {key: value for key, value in one.entry.to_json().items() if key != "beside"}
    return {**entry, "beside_s": beside_s, "link": one.link, "wire_bytes": one.wire_bytes}


def memory_json(step: FrameworkStep) -> dict[str, Any] | None:
    """Bytes of one GPU by part, and whether they fit."""
    if step.trace.memory is None or step.fit is None:
        return None
    fit = {"usable": step.fit.usable_bytes, "spare": step.fit.spare_bytes, "fits": step.fit.fits}
    return {**asdict(step.trace.memory), "reserved": RESERVED_BYTES, **fit}


def utilization(question: Question, cost: StepCost) -> float:
    """Of the GPU's peak in that dtype: the matmuls and attention that a GPU does, recomputed ones too."""
    return cost.flops / cost.step.seconds / question.machine.gpu.peak_flops_per_s[question.dtype]


def predict(question: Question, traces: Mapping[str, StepTrace]) -> Prediction:
    """The prediction from the frameworks' traces of `question.request()`. Raises CostError."""
    return Prediction(question, {name: _step(question, trace) for name, trace in traces.items()})


def _step(question: Question, trace: StepTrace) -> FrameworkStep:
    if trace.skipped:
        return FrameworkStep(trace)
    reconciliation = reconcile(question.request(), trace)
    held = None if trace.memory is None else fit_of(question.machine, trace.memory)
    return FrameworkStep(trace, step_cost(question.machine, question.mesh, trace), held, reconciliation)
