"""The collectives of a case, from every source that knows them, each against the plan's closed formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parity.cases import family_of
from parity.cases.notation import Expected
from parity.check import Finding, check_collectives, note_choice
from parity.contract import Case, Collective
from parity.hlo import read_collectives
from parity.rundir import Run


def judge_collectives(run: Run, case: Case, entry: dict[str, Any]) -> Finding:
    """torch as dispatched, JAX as compiled for A100s and as declared; fills the entry's ledgers, rewrites and notes."""
    formulas = family_of(case).expected(case)
    expected = with_numbers(formulas, case)
    entry["collectives"]["expected"] = as_json(expected)
    finding = Finding()
    dispatched = torch_ledger(run, case, entry, finding)
    judge(finding, entry, case, "torch", dispatched, expected)
    compiled = jax_ledger(run, case, entry, finding)
    if compiled is not None:
        formulas = [formula for formula in formulas if not formula.torch_only]
        expected = with_numbers(formulas, case)
        # Where the style says what is summed, it says in which dtype.
        wider = with_numbers(formulas, case, compiled=True) if case.style != "manual" else ()
        judge(finding, entry, case, "jax", compiled, expected, is_compiled=True, wider=wider)
        if case.style == "manual":
            # The loss and the norm of the gradients are summed outside shard_map: there the style declares nothing.
            by_hand = [formula for formula in formulas if not formula.of_loss and formula.pass_ != "optimizer"]
            trace = run.trace(case)
            declared = trace.declared if trace else ()
            entry["collectives"]["jax_declared"] = as_json(declared)
            judge(finding, entry, case, "jax declares", declared, with_numbers(by_hand, case))
    entry["collectives"]["jax_on_this_device"] = compiled_here(run, case)
    return finding


def with_numbers(formulas: Sequence[Expected], case: Case, compiled: bool = False) -> list[Collective]:
    """The formulas with the case's dims and mesh in them."""
    sizes = {**case.dims, **case.mesh}
    return [formula.collective(sizes, case.dtype, compiled=compiled) for formula in formulas]


def as_json(entries: Sequence[Collective]) -> list[dict[str, Any]]:
    """A ledger as `comparison.json` has it."""
    return [entry.to_json() for entry in entries]


def torch_ledger(run: Run, case: Case, entry: dict[str, Any], finding: Finding) -> Sequence[Collective]:
    """What the ranks dispatched, which must be the same on each."""
    first, *others = [result.collectives or () for result in run.answers["torch"].results[case.id]]
    if any(other != first for other in others):
        finding.fail("torch: the ranks dispatched different collectives")
    entry["collectives"]["torch"] = as_json(first)
    return first


def jax_ledger(run: Run, case: Case, entry: dict[str, Any], finding: Finding) -> Sequence[Collective] | None:
    """What XLA compiled for A100s; None, and a skip with its reason, where it could not."""
    trace = run.trace(case)
    if trace is None or trace.hlo is None:
        finding.skip(f"jax collectives not judged: {trace.skipped if trace else 'no trace was made'}")
        entry["collectives"]["jax"] = {"skip": finding.reasons[-1]}
        return None
    ledger = read_collectives(run.hlo("jax", trace.hlo), case.mesh)
    entry["collectives"]["jax"] = as_json(ledger.collectives)
    entry["notes"] += [f"jax: {note}" for note in ledger.notes]
    for gap in ledger.gaps:
        finding.fail(f"jax: {gap}")
    return ledger.collectives


def judge(
    finding: Finding,
    entry: dict[str, Any],
    case: Case,
    name: str,
    got: Sequence[Collective],
    expected: Sequence[Collective],
    is_compiled: bool = False,
    wider: Sequence[Collective] = (),
) -> None:
    """One ledger against the formula; where the plan leaves the choice to the framework, its choice is recorded."""
    if family_of(case).is_chosen:
        entry["rewrites"].append(note_choice(name, got, expected))
        return
    one, rewrites = check_collectives(name, got, expected, is_compiled, wider)
    for reason in one.reasons:
        finding.fail(reason)
    entry["rewrites"] += rewrites


def compiled_here(run: Run, case: Case) -> list[dict[str, Any]] | None:
    """JAX as compiled for the devices that ran: shown, not judged; XLA on CPUs widens bfloat16."""
    first = run.answers["jax"].results[case.id][0]
    return None if first.hlo is None else as_json(read_collectives(run.hlo("jax", first.hlo), case.mesh).collectives)
