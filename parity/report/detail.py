"""Everything that a comparison says of one case, for the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
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
UNITS = "bounds: the error in units of what rounding explains; ulp: in units in the last place"
SIZE = 4  # the column of bytes


def render_case(case: Mapping[str, Any]) -> RenderableType:
    """Verdict and reason, errors by tensor with its layout, the ledgers, the times of a step."""
    title = Text(f"{case['id']}: ").append(case["verdict"], style=STYLE[case["verdict"]])
    parts: list[RenderableType] = [title]
    parts += [Text(f"  {reason}") for reason in case["reason"].split("; ") if reason]
    parts += [Text(f"  {note}", style="dim") for note in [*case["rewrites"], *case["notes"]]]
    if case["numerics"]:
        parts += [numerics_table(case), Text(UNITS, style="dim")]
    parts += ledgers(case["collectives"])
    if case["timing"]:
        parts.append(timing_table(case["timing"]))
    return Group(*parts)


def numerics_table(case: Mapping[str, Any]) -> Table:
    """One row a tensor: its layout, then for each framework the error in units of the bound and in ULPs."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("tensor", overflow="fold")
    table.add_column("layout")
    for framework in FRAMEWORKS:
        table.add_column(f"{framework}\nbounds", justify="right", no_wrap=True)
        table.add_column("\nulp", justify="right", no_wrap=True)
    layouts = case["layouts"].get("expected", {})
    for name, by_framework in case["numerics"].items():
        cells = []
        for framework in FRAMEWORKS:
            figures = by_framework.get(framework)
            cells += [f"{figures['error_in_bounds']:.3g}", f"{figures['max_ulps']:.3g}"] if figures else ["-", "-"]
        table.add_row(name, layouts.get(base_name(name), ""), *cells)
    return table


def ledgers(collectives: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Every collective of every ledger, in order, each below the name of its ledger and all in the same columns."""
    rows = {key: [*map(ledger_row, entries)] for key, entries in collectives.items() if isinstance(entries, list)}
    columns = zip(*itertools.chain.from_iterable(rows.values()), strict=True)
    widths = [max(map(len, cells)) for cells in columns]
    for key, label in LEDGERS.items():
        entries = collectives.get(key)
        if entries is None:
            continue
        yield Text(f"\n{label}", style="bold")
        if isinstance(entries, dict):
            yield Text(f"  skip: {entries['skip']}", style=STYLE["skip"])
        elif not entries:
            yield Text("  no collective")
        else:
            yield Padding(ledger_table(rows[key], widths), (0, 0, 0, 2))


def ledger_table(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> Table:
    """The rows of one ledger in columns of these widths; the last, where it comes from, takes what is left."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for index, width in enumerate(widths[:-1]):
        table.add_column(min_width=width, no_wrap=True, justify="right" if index == SIZE else "left")
    table.add_column(overflow="fold", style="dim")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def ledger_row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """One collective: what it sends stands at SIZE, where it comes from last."""
    size = f"{entry['payload_bytes']:,} x {entry['count']}"
    return entry["pass"], entry["kind"], entry["axis"], entry["dtype"], size, entry["source"]


def timing_table(timing: Mapping[str, Any]) -> Table:
    """First and steady step of each framework."""
    table = Table("step", "first / steady", "repeats", "device", "backend", box=box.SIMPLE_HEAD, pad_edge=False)
    for framework, figures in timing.items():
        table.add_row(framework, times(figures), str(figures["repeats"]), figures["device"], figures["backend"])
    return table
