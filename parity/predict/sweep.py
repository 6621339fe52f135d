"""The same model and batch on the same GPUs, by degree of tensor parallelism and by plan; what to take and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from parity.cost import CostError, Estimate, Group, collective_time
from parity.cost.step import link_of
from parity.predict import grid
from parity.predict.crossover import Sent, sent_on_grid
from parity.predict.prediction import FrameworkStep, Prediction
from parity.predict.request import DATA_AXES, PLANS, TENSOR_AXIS, Question, RequestError, check
from parity.sizes import sizes_text

DEGREES = (1, 2, 4, 8)
ITEM_BYTES = {"bfloat16": 2, "float32": 4}
MUCH_SLOWER = 1.15  # than the fastest: to be avoided. Errors of two rows have most in common, so less would not show


@dataclass(frozen=True)
class Choice:
    """One way to lay the model out on the GPUs."""

    name: str  # e.g. "tp=4", "sequence_parallel", "2D summa"
    question: Question
    refused: str = ""  # why it cannot be, in one line
    prediction: Prediction | None = None
    closed: Sent | None = None  # what all blocks send by closed formula, where the model has no step that can be traced

    @property
    def source(self) -> str:
        """What its figures are from."""
        return "formula" if self.closed else "trace"

    @property
    def steps(self) -> list[FrameworkStep]:
        """Of the frameworks that could be traced."""
        return [step for step in self.prediction.steps.values() if step.cost] if self.prediction else []

    @property
    def seconds(self) -> float | None:
        """Of a step, the mean of the frameworks."""
        times = [step.cost.step.seconds for step in self.steps if step.cost]
        return sum(times) / len(times) if times else None

    @property
    def fits(self) -> bool:
        """In every framework that could be traced."""
        return all(step.fit.fits for step in self.steps if step.fit)

    def tensor_traffic(self) -> tuple[float, float]:
        """Bytes that a GPU sends along tp, or x and y, and seconds; the frameworks' mean, or by closed formula."""
        if self.closed is not None:
            return self.closed.wire_bytes, self.closed.time.seconds
        own = [
            one
            for step in self.steps
            if step.cost
            for one in step.cost.collectives
            if self.is_tensor_axis(one.entry.axis)
        ]
        number = max(len(self.steps), 1)
        return sum(one.wire_bytes for one in own) / number, sum(one.time.seconds for one in own) / number

    def is_tensor_axis(self, axes: str) -> bool:
        """Whether one of these axes, joined by "+", is of tensor parallelism."""
        return not set(self.question.tensor_axes).isdisjoint(axes.split("+"))

    def share_of_tensor_axis(self) -> float:
        """Of the step, the tensor-parallel collectives that show, the mean of the frameworks."""
        shares = []
        for step in self.steps:
            assert step.cost is not None
            own = [part.time.seconds for part in step.cost.parts if self.is_tensor_axis(part.name.split()[0])]
            shares.append(sum(own) / step.cost.step.seconds)
        return sum(shares) / len(shares) if shares else 0.0


@dataclass(frozen=True)
class Verdict:
    """recommended, possible, avoid or impossible, and why."""

    word: str
    why: str


def tp_choices(question: Question, degrees: Iterable[int] = DEGREES) -> list[Choice]:
    """The mesh's GPUs as (what is left) x tp; the innermost data axis takes what tp leaves."""
    choices = []
    for degree in degrees:
        mesh = {axis: size for axis, size in question.mesh.items() if axis != TENSOR_AXIS}
        data_axis = next(reversed(mesh), "fsdp")
        others = 1
        for axis, size in mesh.items():
            others *= size if axis != data_axis else 1
        left, rest = divmod(question.num_gpus, degree * others)
        mesh = {**mesh, data_axis: left, "tp": degree}
        name = f"tp={degree}"
        if rest or not left:
            refused = f"{question.num_gpus} GPUs do not divide into groups of {degree}"
            choices.append(Choice(name, question, refused))
            continue
        choices.append(_checked(name, question.on(mesh)))
    return choices


def plan_choices(question: Question) -> list[Choice]:
    """The plans of the model on the mesh, 1D and on a grid of as many GPUs beside as many parts of the batch.

    Beside the grid these parts hold whole blocks of parameters (dp), also where the mesh has fsdp. A grid of one row is
    none. A model that has no form on a grid has the closed formula of its blocks.
    """
    ways, parts = question.size(question.tensor_axes), question.size(DATA_AXES)
    data = {axis: size for axis, size in question.mesh.items() if axis in DATA_AXES}
    lines = question if not question.is_on_grid else question.on({**data, TENSOR_AXIS: ways}, PLANS[0], "auto")
    choices = [_checked(plan, replace(lines, plan=plan)) for plan in lines.plans]
    sides = grid.grid_of(ways)
    if min(sides.values()) == 1:
        return choices
    mesh = {**({"dp": parts} if parts > 1 else {}), **sides}
    for algorithm in grid.ALGORITHMS:
        choice = _checked(f"2D {algorithm}", question.on(mesh, algorithm, grid.STYLE))
        is_closed = not choice.refused and grid.grid_layer(question.preset) is None
        choices.append(replace(choice, closed=sent_on_grid(choice.question)) if is_closed else choice)
    return choices


def _checked(name: str, question: Question) -> Choice:
    try:
        check(question)
    except (RequestError, CostError) as error:
        return Choice(name, question, str(error))
    return Choice(name, question)


def verdicts(choices: Iterable[Choice]) -> list[Verdict]:
    """One a choice: the fastest of those that fit is recommended."""
    choices = list(choices)
    possible = [choice for choice in choices if choice.seconds is not None and choice.fits]
    best = min(possible, key=lambda choice: choice.seconds or 0.0, default=None)
    return [_verdict(choice, best) for choice in choices]


def _verdict(choice: Choice, best: Choice | None) -> Verdict:
    if choice.refused:
        return Verdict("impossible", choice.refused)
    if choice.closed is not None:
        why = f"no step to trace, as {choice.question.preset.layer} has no form on a grid: what its blocks send"
        return Verdict("unknown", why)
    if choice.seconds is None:
        reasons = [step.skipped for step in choice.prediction.steps.values()] if choice.prediction else []
        return Verdict("unknown", "; ".join(dict.fromkeys(reasons)))
    if not choice.fits:
        lacking = max(-step.fit.spare_bytes for step in choice.steps if step.fit)
        return Verdict("avoid", f"lacks {lacking / 1e9:.1f} GB of memory")
    share = choice.share_of_tensor_axis()
    about = f"{share:.0%} of it tensor-parallel collectives ({tensor_link(choice.question)})" if share > 0 else ""
    assert best is not None
    if choice is best:
        return Verdict("recommended", ", ".join(filter(None, ("the fastest that fits", about))))
    ratio = choice.seconds / (best.seconds or 1.0)
    is_much_slower = ratio > MUCH_SLOWER
    slower = f"{ratio:.2f} x the step of {best.name}" + (f", over {MUCH_SLOWER}" if is_much_slower else "")
    return Verdict("avoid" if is_much_slower else "possible", ", ".join(filter(None, (slower, about))))


def tensor_link(question: Question) -> str:
    """The link that the axis tp crosses, or x and y together."""
    group = Group.of_axis(question.mesh, "+".join(question.tensor_axes), question.machine.gpus_per_node)
    return link_of(group) if group.gpus > 1 else "none"


def all_reduce_of(question: Question) -> Estimate | None:
    """One all-reduce of the activations [batch of a data-parallel part, S, D] over tp; None where there is none."""
    if question.size(("tp",)) == 1:
        return None
    group = Group.of_axis(question.mesh, "tp", question.machine.gpus_per_node)
    return collective_time(question.machine, "all_reduce", activation_bytes(question), group)


def activation_bytes(question: Question) -> int:
    """Of [batch of a data-parallel part, S, D]."""
    tokens = question.tokens // question.size(("dp", "fsdp"))
    return tokens * question.preset.dims["D"] * ITEM_BYTES[question.dtype]


def sweep_json(choices: Iterable[Choice]) -> list[dict[str, Any]]:
    """A dict a choice, with its whole prediction."""
    choices = list(choices)
    rows = []
    for choice, verdict in zip(choices, verdicts(choices), strict=True):
        one: dict[str, Any] = {"name": choice.name, "mesh": sizes_text(choice.question.mesh), **vars(verdict)}
        if not choice.refused:
            one["source"] = choice.source
            all_reduce = all_reduce_of(choice.question)
            one["link"] = tensor_link(choice.question)
            one["all_reduce_bytes"] = activation_bytes(choice.question)
            one["all_reduce"] = None if all_reduce is None else all_reduce.to_json()
            one["tensor_parallel_wire_bytes"], one["tensor_parallel_s"] = choice.tensor_traffic()
            one["tensor_parallel_share"] = choice.share_of_tensor_axis()
        one["prediction"] = choice.prediction.to_json() if choice.prediction else None
        rows.append(one)
    return rows
