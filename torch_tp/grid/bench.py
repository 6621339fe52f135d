"""Times a grid plan and `gathered` in turns, so that a busy machine slows both and their ratio stays meaningful."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from parity.question_contract import ChainQuestion, PairedTimes
from torch_tp.grid.chain import operands_of, run
from torch_tp.mesh import make_mesh
from torch_tp.timing import time_once

BASELINE = "gathered"


def make_call(question: ChainQuestion, device: str) -> Callable[[], object]:
    """A function that runs the products on operands of its own."""
    mesh = make_mesh(question.mesh, device)
    operands, cotangent = operands_of(question, mesh)
    return lambda: run(question, mesh, operands, cotangent)


def bench(question: ChainQuestion, rank: int, device: str, num_pairs: int) -> PairedTimes:
    """Seconds of num_pairs calls of each, after a cold call; the order alternates from pair to pair."""
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
