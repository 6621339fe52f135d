"""Joins the files of a run into one comparison: a verdict for every case, with its figures. Pure, and repeatable.

Reads what the workers wrote and the case data; runs no framework. The dict that `compare` returns is what
`comparison.json` holds and what every report renders.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from parity.cases import family_of
from parity.check import Finding, assemble, check_layouts
from parity.contract import FRAMEWORKS, SCHEMA_VERSION, Case, ContractError, Result, Timing
from parity.ledgers import judge_collectives
from parity.processes import process_pool
from parity.reference import Arrays, evaluate, train
from parity.rundir import Run, read_run
from parity.tolerance import Evaluation, bounds_of, error_in_bounds, ulps

# The worst of several verdicts is the verdict of the whole.
SEVERITY = ("pass", "skip", "fail", "error")


# A process of its own takes about as long to start as the bounds for so many batches.
BATCHES_A_PROCESS = 8


def compare(
    run: Run,
    wanted: Sequence[Case] | None = None,
    on_case: Callable[[dict[str, Any]], None] = lambda entry: None,
    num_processes: int | None = None,
) -> dict[str, Any]:
    """The comparison of a run, or of some of its cases, as `comparison.json` has it; `on_case` hears of each case.

    num_processes: among which the inputs are divided; by default one a core, fewer where that would not pay.
    """
    chosen = run.cases if wanted is None else wanted
    entries = {}
    for entry in _entries(run, chosen, num_processes):
        entries[entry["id"]] = entry
        on_case(entry)
    cases = [entries[case.id] for case in chosen]
    counts = Counter(case["verdict"] for case in cases)
    return {
        "schema_version": SCHEMA_VERSION,
        "settings": run.settings,
        "environment": {framework: run.answers[framework].environment for framework in FRAMEWORKS},
        "summary": {verdict: counts[verdict] for verdict in ("pass", "fail", "error", "skip")},
        "cases": cases,
    }


def _entries(run: Run, cases: Sequence[Case], num_processes: int | None) -> Iterator[dict[str, Any]]:
    """The cases' entries in any order. Those of the same inputs share a process and their bounds."""
    parts: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        parts.setdefault((case.inputs, case.layer), []).append(case)
    if num_processes is None:
        num_batches = sum(part[0].num_batches for part in parts.values())
        num_processes = min(len(os.sched_getaffinity(0)), len(parts), num_batches // BATCHES_A_PROCESS)
    if num_processes <= 1:
        oracle = Oracle(run)
        yield from (compare_case(run, case, oracle) for case in cases)
        return
    with process_pool(num_processes, _open_run, (run.directory,)) as pool:
        yield from itertools.chain.from_iterable(pool.map(_compare_part, parts.values()))


_opened: tuple[Run, Oracle]  # in a process of `_entries`


def _open_run(directory: Path) -> None:
    global _opened
    run = read_run(directory)
    _opened = run, Oracle(run)


def _compare_part(cases: Sequence[Case]) -> list[dict[str, Any]]:
    run, oracle = _opened
    return [compare_case(run, case, oracle) for case in cases]


class Oracle:
    """What each case should give and how far rounding may take it, computed once for all cases that share it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.values = cache(self._values)
        self.bounds = cache(self._bounds)
        self._cases = {case.id: case for case in run.cases}
        self._first = {(case.inputs, case.layer): case.id for case in reversed(run.cases)}

    def of(self, case: Case) -> dict[str, np.ndarray]:
        """The float64 values of every output and gradient."""
        return self.values(self._first[case.inputs, case.layer])

    def bounds_of(self, case: Case) -> dict[str, np.ndarray]:
        """The elementwise bounds of every output and gradient; all 0 where the operands make every sum exact."""
        if case.operands == "integers":
            return {name: np.zeros_like(value) for name, value in self.of(case).items()}
        # Only sums of bfloat16 depend on the number of devices: their partial sums are rounded to storage.
        num_devices = case.num_devices if case.dtype == "bfloat16" else 1
        return self.bounds(self._first[case.inputs, case.layer], num_devices)

    def _values(self, case_id: str) -> dict[str, np.ndarray]:
        case = self._cases[case_id]
        return dict(formula_of(case, *self._run.inputs(case))(None))

    def _bounds(self, case_id: str, num_devices: int) -> dict[str, np.ndarray]:
        case = self._cases[case_id]
        return bounds_of(formula_of(case, *self._run.inputs(case)), case.dtype, num_devices, case.seed)


def formula_of(case: Case, params: Arrays, batch: Arrays) -> Evaluation:
    """What the case's task computes, in any arithmetic."""
    if case.task == "train":
        return lambda arithmetic: train(case.layer, case.options, params, batch, case.recipe, arithmetic)
    return lambda arithmetic: evaluate(case.layer, case.options, params, batch, arithmetic)


def given_of(run: Run, case: Case) -> dict[str, np.ndarray]:
    """What the workers were given and report again, as they hold it: in a step parameters and inputs, bit for bit."""
    params, batch = run.inputs(case)
    return {} if case.task == "train" else {**params, **{name: batch[name] for name in family_of(case).shapes(case)[1]}}


def compare_case(run: Run, case: Case, oracle: Oracle) -> dict[str, Any]:
    """One case: its verdict, the reasons, and all figures that led to it."""
    entry: dict[str, Any] = {"id": case.id, "verdict": "error", "reason": "", "numerics": {}, "layouts": {}}
    entry |= {"collectives": {"torch": None, "jax": None, "expected": None}, "timing": {}, "rewrites": [], "notes": []}
    errors = [
        f"{framework}: {run.answers[framework].errors[role, case.id]}"
        for framework in FRAMEWORKS
        for role in ("ranks", "trace")
        if (role, case.id) in run.answers[framework].errors
    ]
    num_results = {framework: len(run.answers[framework].results.get(case.id, [])) for framework in FRAMEWORKS}
    missing = [
        f"{framework}: {num} of {case.num_devices} devices have a result"
        for framework, num in num_results.items()
        if num != case.num_devices
    ]
    if errors or missing:
        return entry | {"reason": "; ".join(errors or [*missing, "`parity run --resume` does what is left"])}
    try:
        findings = [
            judge_numerics(run, case, oracle, entry),
            judge_layouts(run, case, oracle, entry),
            judge_collectives(run, case, entry),
        ]
    except ContractError as error:
        return entry | {"reason": str(error)}
    except KeyError as error:
        return entry | {"reason": f"a record names {error}, which the case does not have"}
    entry["timing"] = {f: timing_of(run.answers[f].results[case.id]) for f in FRAMEWORKS}
    entry["verdict"] = max((finding.verdict for finding in findings), key=SEVERITY.index)
    entry["reason"] = "; ".join(reason for finding in findings for reason in finding.reasons)
    return entry


def judge_numerics(run: Run, case: Case, oracle: Oracle, entry: dict[str, Any]) -> Finding:
    """Every tensor of both frameworks against the oracle, from every rank's shard; what was given, bit for bit."""
    finding = Finding()
    given = given_of(run, case)
    wanted, bound = oracle.of(case), oracle.bounds_of(case)
    for framework in FRAMEWORKS:
        held = [run.shards(framework, result) for result in run.answers[framework].results[case.id]]
        for name in [*wanted, *given]:
            parts = [shards[name] for shards in held if name in shards]
            if not parts:
                finding.fail(f"{framework} {name}: no rank reports it")
                continue
            got, problem = assemble(parts)
            want = wanted[name] if name in wanted else given[name].astype(np.float64)
            if not problem and got.shape != want.shape:
                problem = f"has shape {got.shape}, expected {want.shape}"
            dtype = expected_dtype(case, name)
            if not problem and any(shard.dtype != dtype for shard, _ in parts):
                problem = f"is {parts[0][0].dtype}, expected {dtype}"
            if problem:
                finding.fail(f"{framework} {name}: {problem}")
                continue
            error = error_in_bounds(got, want, bound.get(name, np.zeros_like(want)))
            figures = {"error_in_bounds": error, "max_ulps": ulps(got, want, dtype)}
            entry["numerics"].setdefault(name, {})[framework] = figures
            if error > 1:
                finding.fail(f"{framework} {name}: {_amount(error)}, {figures['max_ulps']:.3g} ulp from the reference")
    return finding


def expected_dtype(case: Case, tensor: str) -> str:
    """Losses of bfloat16 cases are float32, ids are int64; everything else stays in the case's dtype."""
    if tensor in family_of(case).ids:
        return "int64"
    wide = ("loss", *family_of(case).in_float32)
    return "float32" if tensor in wide and case.dtype == "bfloat16" else case.dtype


def _amount(error_in_bounds: float) -> str:
    return "differs where it must be equal" if np.isinf(error_in_bounds) else f"error is {error_in_bounds:.3g} bounds"


def judge_layouts(run: Run, case: Case, oracle: Oracle, entry: dict[str, Any]) -> Finding:
    """What every device holds, against the case's layouts and so against the other framework."""
    family, finding = family_of(case), Finding()
    params, _ = run.inputs(case)
    tensors = [*oracle.of(case), *given_of(run, case)]
    for framework in FRAMEWORKS:
        one = check_layouts(case, family, run.answers[framework].results[case.id], tensors)
        entry["layouts"][framework] = {"verdict": one.verdict, "reasons": one.reasons}
        for reason in one.reasons:
            finding.fail(f"{framework} {reason}")
    entry["layouts"]["expected"] = {name: family.tensors[name] for name in [*params, *family.shapes(case)[1], "y"]}
    return finding


def timing_of(results: list[Result]) -> dict[str, Any]:
    """The slowest rank's seconds: a step is done when all are."""
    timings: list[Timing] = [result.timing for result in results]
    return {
        "cold_s": max((timing.cold_s for timing in timings if timing.cold_s is not None), default=None),
        "steady_s": max(timing.steady_s for timing in timings),
        "repeats": timings[0].repeats,
        "device": timings[0].device,
        "backend": timings[0].backend,
    }
