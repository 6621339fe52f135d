"""Times a grid plan and `gathered` in turns, so that a busy machine slows both and their ratio stays meaningful."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
from jax.sharding import AxisType

from jax_tp.grid.chain import operands_of, run
from jax_tp.mesh import make_mesh
from jax_tp.timing import time_once
from parity.question_contract import ChainQuestion, PairedTimes

BASELINE = "gathered"


def make_call(question: ChainQuestion) -> Callable[[], object]:
    """A function that runs the products on operands of its own."""
    mesh = make_mesh(question.mesh, AxisType.Auto)
    with jax.set_mesh(mesh):
        specs = operands_of(question, mesh)
        random = jax.tree.map(lambda one: partial(jax.random.uniform, jax.random.key(0), one.shape, one.dtype), specs)
        shardings = jax.tree.map(lambda one: one.sharding, specs)
        arguments = jax.tree.map(lambda make, sharding: jax.jit(make, out_shardings=sharding)(), random, shardings)
        program = jax.jit(partial(run, question)).lower(*arguments).compile()
    return lambda: program(*arguments)


def bench(question: ChainQuestion, rank: int, num_pairs: int) -> PairedTimes:
    """Seconds of num_pairs calls of each, after a cold call; the order alternates from pair to pair."""
    baseline = make_call(replace(question, plan=BASELINE))
    call = make_call(question)
    for cold in (baseline, call):
        time_once(cold)
    baseline_s, call_s = [], []
    for number in range(num_pairs):
        turns = [(baseline, baseline_s), (call, call_s)]
        for one, times in turns if number % 2 == 0 else turns[::-1]:
            times.append(time_once(one)[1])
    return PairedTimes(question.id, rank, tuple(baseline_s), tuple(call_s))
