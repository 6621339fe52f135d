"""A comparison as tables for the terminal."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from parity.contract import FRAMEWORKS
from parity.spent import Spent

# From good to bad.
STYLE = {"pass": "green", "skip": "yellow", "fail": "bold red", "error": "bold red"}
FINDINGS = ("fail", "error")

TIMINGS_FROM_WIDTH = 120  # columns; of runs with --timings; narrower terminals show them in comparison.json only
MOST_ROWS = 50  # of more cases, those without a finding share a row for each plan and its options
MOST_REASONS = 20
BRIEF = "One row for all cases of a plan that pass, with their worst errors; --all-rows shows each."


def render(comparison: Mapping[str, Any], width: int, all_rows: bool = False) -> RenderableType:
    """The table of cases, notes, the environment; last, where the terminal stays: what went wrong, and the summary."""
    cases = comparison["cases"]
    with_timings = comparison["settings"]["timings"] and width >= TIMINGS_FROM_WIDTH
    is_brief = len(cases) > MOST_ROWS and not all_rows and not with_timings
    parts: list[RenderableType] = [cases_table(cases, with_timings, is_brief)]
    if is_brief:
        parts.append(Text(BRIEF, style="dim"))
    parts += [*_notes(cases), environment_line(comparison), *_findings(cases), summary_line(comparison)]
    return Group(*parts)


def cases_table(cases: Iterable[Mapping[str, Any]], with_timings: bool, is_brief: bool = False) -> Table:
    """One row a case: the worst error in units of its bound, bytes of all collectives, verdict; step times.

    Brief: those without a finding share one row for a plan and its options.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("case", overflow="fold")
    table.add_column("torch", justify="right", no_wrap=True)
    table.add_column("jax", justify="right", no_wrap=True)
    table.add_column("comm bytes", justify="right", min_width=10)
    table.add_column("verdict", no_wrap=True)
    for framework in FRAMEWORKS if with_timings else ():
        table.add_column(f"{framework} first / steady", justify="right", no_wrap=True)
    for heading, group in itertools.groupby(cases, lambda case: "/".join(case["id"].split("/")[:3])):
        members = list(group)
        shown = [case for case in members if not is_brief or case["verdict"] in FINDINGS]
        if len(shown) < len(members):
            table.add_row(heading, *_summary_cells([case for case in members if case["verdict"] not in FINDINGS]))
        else:
            table.add_row(Text(heading, style="bold"))
        for case in shown:
            table.add_row(
                "  " + case["id"].removeprefix(f"{heading}/"),
                *(_worst_error([case], framework) for framework in FRAMEWORKS),
                _bytes(case["collectives"]),
                Text(case["verdict"], style=STYLE[case["verdict"]]),
                *(times(case["timing"].get(framework)) for framework in FRAMEWORKS if with_timings),
            )
    return table


def _summary_cells(cases: Sequence[Mapping[str, Any]]) -> list[str | Text]:
    """Of cases in one row: their worst errors, and how many of each verdict."""
    counts = counts_text(Counter(case["verdict"] for case in cases))
    return [*(_worst_error(cases, framework) for framework in FRAMEWORKS), "", counts]


def _worst_error(cases: Iterable[Mapping[str, Any]], framework: str) -> str:
    tensors = itertools.chain.from_iterable(case["numerics"].values() for case in cases)
    errors = [figures[framework]["error_in_bounds"] for figures in tensors if framework in figures]
    if not errors:
        return "-"
    return "equal" if max(errors) == 0 else f"{max(errors):.2g}"


def _bytes(ledgers: Mapping[str, Any]) -> str:
    """One figure if all agree, else each: `torch 960, jax 1,920, not 960`."""
    sums = {name: _sum(ledgers[name]) for name in (*FRAMEWORKS, "expected")}
    if len(set(sums.values())) == 1:
        return sums["expected"]
    return f"torch {sums['torch']}, jax {sums['jax']}, not {sums['expected']}"


def _sum(ledger: Any) -> str:
    if ledger is None:
        return "-"
    if isinstance(ledger, dict):
        return "skip"
    return f"{sum(entry['payload_bytes'] * entry['count'] for entry in ledger):,}"


def times(timing: Mapping[str, Any] | None) -> str:
    """First and steady step."""
    if timing is None:
        return "-"
    cold = "-" if timing["cold_s"] is None else duration(timing["cold_s"])
    return f"{cold} / {duration(timing['steady_s'])}"


def duration(seconds: float) -> str:
    """Seconds with a unit that keeps three digits readable."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= factor or unit == "us":
            return f"{seconds / factor:.3g} {unit}"
    raise AssertionError


def _notes(cases: Iterable[Mapping[str, Any]]) -> Iterable[RenderableType]:
    """What compilers made of the collectives."""
    yield from _lines([("note", rewrite, case["id"]) for case in cases for rewrite in case["rewrites"]])


def _findings(cases: Iterable[Mapping[str, Any]]) -> Iterable[RenderableType]:
    """Why cases did not pass, the worst verdicts last."""
    reasons = [(case["verdict"], case["reason"], case["id"]) for case in cases if case["reason"]]
    lines = _lines(sorted(reasons, key=lambda reason: list(STYLE).index(reason[0])))
    hidden = lines[:-MOST_REASONS]
    if lines:
        yield Text()
    if hidden:
        yield Text(f"{len(hidden)} more reasons: see comparison.json", style=hidden[-1].style)  # the worst of them
    yield from lines[-MOST_REASONS:]


def _lines(entries: Iterable[tuple[str, str, str]]) -> list[Text]:
    """One for all of the same kind and reason, naming the first case: from (kind, reason, case)."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for kind, reason, case_id in entries:
        by_reason.setdefault((kind, reason), []).append(case_id)
    lines = []
    for (kind, reason), ids in by_reason.items():
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        lines.append(Text(kind, style=STYLE.get(kind, "dim")).append(f" {ids[0]}{more}: {reason}", style="none"))
    return lines


def environment_line(comparison: Mapping[str, Any]) -> Text:
    """Versions, devices, precision flags and threads, one line a framework."""
    lines = []
    for framework in FRAMEWORKS:
        facts = comparison["environment"][framework]
        lines.append(f"{framework}: " + (", ".join(f"{k} {v}" for k, v in facts.items() if v not in (None, "")) or "-"))
    return Text("\n" + "\n".join(lines), style="dim")


def summary_line(comparison: Mapping[str, Any]) -> Text:
    """`12 pass, 1 fail` on a line of its own."""
    return Text("\n").append_text(counts_text(comparison["summary"]))


def counts_text(counts: Mapping[str, int]) -> Text:
    """`12 pass, 1 fail`: only what there is."""
    words = [Text(f"{counts[verdict]} {verdict}", style=style) for verdict, style in STYLE.items() if counts[verdict]]
    return Text(", ").join(words) if words else Text("no cases")


def spent_line(spent: Spent, comparing_s: float) -> str:
    """Where the time of the run went."""
    return (
        f"{spent.total_s + comparing_s:.0f} s: {spent.start_s:.0f} s starting workers, {spent.first_steps_s:.0f} s in "
        f"first steps, {spent.a100_s:.0f} s more compiling for A100s, {comparing_s:.0f} s comparing, "
        f"{spent.ours_s:.0f} s all else"
    )


def print_comparison(console: Console, comparison: Mapping[str, Any], all_rows: bool) -> None:
    """Print the whole report."""
    console.print(render(comparison, console.width, all_rows))
