"""Everything that a comparison says of one case, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from parity.check import base_name
from parity.contract import FRAMEWORKS
from parity.report.terminal import STYLE, times

LEDGERS = {
    "expected": "the plan's formula",
    "torch": "torch, as dispatched",
    "jax": "jax, compiled for A100s",
    "jax_declared": "jax, declared in shard_map",
    "jax_on_this_device": "jax, compiled for this device (not judged)",
}


def render_case(case: Mapping[str, Any]) -> RenderableType:
    """Verdict and reason, errors by tensor with its layout, the ledgers, the times of a step."""
    title = Text(f"{case['id']}: ").append(case["verdict"], style=STYLE[case["verdict"]])
    parts: list[RenderableType] = [title]
    parts += [Text(f"  {reason}") for reason in case["reason"].split("; ") if reason]
    parts += [Text(f"  {note}", style="dim") for note in [*case["rewrites"], *case["notes"]]]
    parts += [numerics_table(case), ledger_table(case["collectives"]), timing_table(case["timing"])]
    return Group(*parts)


def numerics_table(case: Mapping[str, Any]) -> Table:
    """One row a tensor: its layout, then for each framework the error in units of the bound and in ULPs."""
    table = Table("tensor", "layout", box=box.SIMPLE_HEAD, pad_edge=False)
    for framework in FRAMEWORKS:
        table.add_column(f"{framework} error", justify="right")
        table.add_column("max ulp", justify="right")
    layouts = case["layouts"].get("expected", {})
    for name, by_framework in case["numerics"].items():
        cells = []
        for framework in FRAMEWORKS:
            figures = by_framework.get(framework)
            cells += [f"{figures['error_in_bounds']:.3g}", f"{figures['max_ulps']:.3g}"] if figures else ["-", "-"]
        table.add_row(name, layouts.get(base_name(name), ""), *cells)
    return table


def ledger_table(collectives: Mapping[str, Any]) -> Table:
    """Every collective of every ledger, in order."""
    table = Table("ledger", "pass", "kind", "axis", "dtype", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("bytes x count", justify="right")
    table.add_column("from", overflow="fold")
    for key, label in LEDGERS.items():
        entries = collectives.get(key)
        if isinstance(entries, dict):
            table.add_row(label, Text("skip", style=STYLE["skip"]), "", "", "", "", entries["skip"])
        elif entries is not None:
            rows = [ledger_row(entry) for entry in entries] or [("none", "", "", "", "", "")]
            for index, row in enumerate(rows):
                table.add_row("" if index else label, *row)
    return table


def ledger_row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """One collective."""
    size = f"{entry['payload_bytes']:,} x {entry['count']}"
    return entry["pass"], entry["kind"], entry["axis"], entry["dtype"], size, entry["source"]


def timing_table(timing: Mapping[str, Any]) -> Table:
    """First and steady step of each framework."""
    table = Table("step", "first / steady", "repeats", "device", "backend", box=box.SIMPLE_HEAD, pad_edge=False)
    for framework, figures in timing.items():
        table.add_row(framework, times(figures), str(figures["repeats"]), figures["device"], figures["backend"])
    return table
