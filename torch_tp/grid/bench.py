"""A plan of the grid beside `gathered`, in turns: what slows both, such as a busy machine, leaves the ratio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from parity.question_contract import ChainQuestion, PairedTimes
from torch_tp.grid.chain import operands_of, run
from torch_tp.mesh import make_mesh
from torch_tp.timing import time_once

BASELINE = "gathered"


def make_call(question: ChainQuestion, device: str) -> Callable[[], object]:
    """The products on operands of their own, to be called as often as wanted."""
    mesh = make_mesh(question.mesh, device)
    operands, cotangent = operands_of(question, mesh)
    return lambda: run(question, mesh, operands, cotangent)


def bench(question: ChainQuestion, rank: int, device: str, num_pairs: int) -> PairedTimes:
    """Seconds of both, so many times each, after a cold call; every second pair in the other order."""
    baseline = make_call(replace(question, plan=BASELINE), device)
    call = make_call(question, device)
    for cold in (baseline, call):
        time_once(cold, device)
    baseline_s, call_s = [], []
    for number in range(num_pairs):
        turns = [(baseline, baseline_s), (call, call_s)]
        for one, times in turns if number % 2 == 0 else turns[::-1]:
            times.append(time_once(one, device)[1])
    return PairedTimes(question.id, rank, tuple(baseline_s), tuple(call_s))
