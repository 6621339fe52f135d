"""From how many GPUs on 2D tensor parallelism sends less, or sooner, than 1D: a block's collectives by closed formula.

    1D           2 all-reduces of B S D forward and 2 backward: what a GPU sends does not shrink with p
    sequence-p.  the same bytes as gathers and reduce-scatters of the norms' input and output
    2D           x by y grid, p = x y: the products of `parity.cases.grid_block`, whose B S K / x (once for weights of
                 the same input) and K N / y a GPU shrink as 1 / sqrt(p), and sums of norms and biases, which are small

Compute is the same in all (the flops of a block over p), so collectives alone decide, if none is overlapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from parity.cases import block, grid_block
from parity.cases.notation import Expected
from parity.cost import Estimate, Group, collective_time, total, wire_factor
from parity.predict import grid
from parity.predict.request import DATA_AXES, Question, divided

COUNTS = (4, 16, 64, 256, 1024)
GRIDS = ("gathered", "summa", "stationary")
ONE_D = ("megatron", "sequence_parallel")


@dataclass(frozen=True)
class Sent:
    """What one GPU sends in forward and backward of one block on `gpus` GPUs, and how long that takes."""

    plan: str
    gpus: int
    wire_bytes: float
    time: Estimate
    refused: str = ""  # why a model cannot be split so; the figures are what it would send


def crossover(question: Question, counts: Iterable[int] = COUNTS) -> list[Sent]:
    """Each plan on each count that the machine has, for the tokens of one data-parallel part."""
    most = question.machine.gpus_per_node * question.machine.max_nodes
    rows = []
    for gpus in (count for count in counts if count <= most):
        rows += [_one_d(question, plan, gpus) for plan in ONE_D]
        rows += [_two_d(question, plan, grid.grid_of(gpus)) for plan in GRIDS]
    return rows


def first_win(rows: Iterable[Sent], by_time: bool) -> int | None:
    """The least number of GPUs from which on the best 2D plan beats the best 1D plan, in time or in bytes."""
    rows = list(rows)

    def best(gpus: int, plans: Iterable[str]) -> float:
        own = [row for row in rows if row.gpus == gpus and row.plan in plans]
        return min(row.time.seconds if by_time else row.wire_bytes for row in own)

    won: int | None = None
    for gpus in sorted({row.gpus for row in rows}, reverse=True):
        if best(gpus, GRIDS) >= best(gpus, ONE_D):
            break
        won = gpus
    return won


def _tokens(question: Question) -> int:
    return question.tokens // question.size(DATA_AXES)


def _of_block(question: Question, formulas: Iterable[Expected]) -> list[Expected]:
    """Those of the parameters that the model's blocks have."""
    names = [name.removeprefix("blocks.0.") for name in question.preset.shapes()]
    return [formula for formula in formulas if formula.param in ("", *names) and not formula.of_loss]


def _one_d(question: Question, plan: str, gpus: int) -> Sent:
    sizes = {**question.preset.dims, "B": 1, "S": _tokens(question), "tp": gpus}
    formulas = block.family(block.FAMILIES, plan).collectives
    counted = [(formula, sizes, 1) for formula in _of_block(question, formulas)]
    return _sum(question, plan, {"tp": gpus}, counted, _refusal(question, plan, gpus))


def _refusal(question: Question, plan: str, ways: int) -> str:
    """Why what the plan cuts, heads and hidden features or tokens, cannot be cut in so many; or nothing."""
    sizes = divided(replace(question, plan=plan))
    return next((f"{what} do not divide by {ways}" for what, size in sizes.items() if size % ways), "")


def sent_on_grid(question: Question) -> Sent:
    """What all blocks of the model send on the question's grid, by its algorithm."""
    mesh = {axis: question.mesh[axis] for axis in grid.AXES}
    one, blocks = _two_d(question, question.plan, mesh), question.preset.dims["L"]
    return replace(one, wire_bytes=blocks * one.wire_bytes, time=total([(one.time, blocks)], one.time.basis))


def _two_d(question: Question, plan: str, mesh: Mapping[str, int]) -> Sent:
    sizes = {**question.preset.dims, "B": _tokens(question), "S": 1, **mesh}
    formulas = _of_block(question, grid_block.collectives(plan))
    counted = [(formula, sizes, max(mesh.values())) for formula in formulas]
    return _sum(question, plan, mesh, counted, _refusal(question, plan, mesh[grid.hidden_axis(plan)]))


def _sum(
    question: Question,
    plan: str,
    mesh: Mapping[str, int],
    counted: Iterable[tuple[Expected, Mapping[str, int], int]],
    refused: str,
) -> Sent:
    """Broadcasts go in so many panels: one at a time is in memory."""
    machine, timed, sent = question.machine, [], 0.0
    for formula, sizes, panels in counted:
        entry = formula.collective(sizes, question.dtype)
        group = Group.of_axis(mesh, entry.axis, machine.gpus_per_node)
        parts = panels if entry.kind == "broadcast" else 1
        timed.append((collective_time(machine, entry.kind, entry.payload_bytes / parts, group), parts))
        sent += entry.payload_bytes * wire_factor(entry.kind, group.gpus)
    gpus = 1
    for size in mesh.values():
        gpus *= size
    return Sent(plan, gpus, sent, total(timed, "sum of a block's collectives"), refused)


def crossover_json(rows: Iterable[Sent]) -> dict[str, Any]:
    """The rows, and from where on 2D wins."""
    rows = list(rows)
    table = [{**vars(row), "time": row.time.to_json()} for row in rows]
    return {
        "rows": table,
        "two_d_sends_less_from": first_win(rows, False),
        "two_d_is_faster_from": first_win(rows, True),
    }
