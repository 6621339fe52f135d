"""A comparison as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from parity.contract import FRAMEWORKS
from parity.spent import Spent

STYLE = {"pass": "green", "fail": "bold red", "error": "bold red", "skip": "yellow"}


TIMINGS_FROM_WIDTH = 120  # columns; of runs with --timings; narrower terminals show them in comparison.json only


def render(comparison: Mapping[str, Any], width: int) -> RenderableType:
    """The table of cases, what went wrong, the environment and the summary."""
    cases = comparison["cases"]
    with_timings = comparison["settings"]["timings"] and width >= TIMINGS_FROM_WIDTH
    parts: list[RenderableType] = [cases_table(cases, with_timings)]
    parts += list(_explanations(cases))
    parts += [environment_line(comparison), summary_line(comparison)]
    return Group(*parts)


def cases_table(cases: Iterable[Mapping[str, Any]], with_timings: bool) -> Table:
    """One row a case: the worst error in units of its bound, bytes of all collectives, verdict; step times."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("case", overflow="fold")
    table.add_column("torch", justify="right", no_wrap=True)
    table.add_column("jax", justify="right", no_wrap=True)
    table.add_column("comm bytes", justify="right", min_width=10)
    table.add_column("verdict", no_wrap=True)
    for framework in FRAMEWORKS if with_timings else ():
        table.add_column(f"{framework} first / steady", justify="right", no_wrap=True)
    heading = ""
    for case in cases:
        words = case["id"].split("/")
        if heading != (heading := "/".join(words[:3])):
            table.add_row(Text(heading, style="bold"))
        table.add_row(
            "  " + "/".join(words[3:]),
            *(_worst_error(case["numerics"], framework) for framework in FRAMEWORKS),
            _bytes(case["collectives"]),
            Text(case["verdict"], style=STYLE[case["verdict"]]),
            *(times(case["timing"].get(framework)) for framework in FRAMEWORKS if with_timings),
        )
    return table


def _worst_error(numerics: Mapping[str, Any], framework: str) -> str:
    errors = [figures[framework]["error_in_bounds"] for figures in numerics.values() if framework in figures]
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


def _explanations(cases: Iterable[Mapping[str, Any]]) -> Iterable[RenderableType]:
    by_reason: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        if case["reason"]:
            by_reason.setdefault((case["verdict"], case["reason"]), []).append(case["id"])
        for rewrite in case["rewrites"]:
            by_reason.setdefault(("note", rewrite), []).append(case["id"])
    for (verdict, reason), ids in by_reason.items():
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        style = STYLE.get(verdict, "dim")
        yield Text.from_markup(f"[{style}]{verdict}[/] {escape(ids[0])}{more}: {escape(reason)}")


def environment_line(comparison: Mapping[str, Any]) -> Text:
    """Versions, devices, precision flags and threads, one line a framework."""
    lines = []
    for framework in FRAMEWORKS:
        facts = comparison["environment"][framework]
        lines.append(f"{framework}: " + (", ".join(f"{k} {v}" for k, v in facts.items() if v not in (None, "")) or "-"))
    return Text("\n" + "\n".join(lines), style="dim")


def summary_line(comparison: Mapping[str, Any]) -> Text:
    """`12 pass, 1 fail`: only what there is."""
    counts = [(verdict, count) for verdict, count in comparison["summary"].items() if count]
    line = Text("\n")
    for index, (verdict, count) in enumerate(counts):
        line.append(", " if index else "")
        line.append(f"{count} {verdict}", style=STYLE[verdict])
    return line if counts else Text("no cases")


def spent_line(spent: Spent, comparing_s: float) -> str:
    """Where the time of the run went."""
    return (
        f"{spent.total_s + comparing_s:.0f} s: {spent.start_s:.0f} s starting workers, {spent.first_steps_s:.0f} s in "
        f"first steps, {spent.a100_s:.0f} s more compiling for A100s, {comparing_s:.0f} s comparing, "
        f"{spent.ours_s:.0f} s all else"
    )


def print_comparison(console: Console, comparison: Mapping[str, Any]) -> None:
    """Print the whole report."""
    console.print(render(comparison, console.width))
