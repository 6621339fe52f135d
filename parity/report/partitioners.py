"""What the partitioners insert, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

SHORT = {
    "all_reduce": "AR",
    "all_gather": "AG",
    "reduce_scatter": "RS",
    "all_to_all": "A2A",
    "broadcast": "BC",
    "permute": "CP",
}
LEGEND = (
    "Layouts: a letter for each axis of the mesh @x, @y: R replicated along it, S0 or S1 the tensor's dim 0 or 1 "
    "sharded over it. So S0,R is a tensor whose rows are split over @x and that @y replicates.\n"
    "Collectives, with the axis of the mesh: AR all-reduce, AG all-gather, RS reduce-scatter, A2A all-to-all, "
    "BC broadcast, CP permute; 2xAG@y is two of them, AR@x+y one over both axes.\n"
    "MiB: what a device receives; ->: the layout of the result. XLA sums bfloat16 in float32."
)


def print_program(console: Console, title: str, rows: Sequence[Any]) -> None:
    """The `parity.partitioners.Row`s of one program; refusals stand below, a line each."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, title=escape(title), title_justify="left")
    table.add_column("operands", no_wrap=True)
    for heading in ("DTensor", "Shardy"):
        table.add_column(heading)
        table.add_column("MiB", justify="right", no_wrap=True)
        table.add_column("->", no_wrap=True)
    table.add_column("fewer", no_wrap=True)
    for row in rows:
        cells = []
        for answer, received in zip((row.torch, row.jax), row.received, strict=True):
            cells += ["[red]refuses[/]" if answer.refused else short(answer.collectives), mib(received)]
            cells.append(",".join(answer.output))
        operands = "  ".join(",".join(layout) for layout in row.question.layouts)
        table.add_row(operands, *cells, {"equal": "", "torch": "DTensor", "jax": "Shardy"}.get(row.fewer, ""))
    console.print(table)
    for row in rows:
        for name, answer in (("DTensor", row.torch), ("Shardy", row.jax)):
            if answer.refused:
                line = f"{row.question.id}: {name} refuses: {answer.refused}"
                console.print(escape(line), soft_wrap=True, highlight=False)


def short(collectives: Iterable[Any]) -> str:
    """`AG@y AR@x`; one that comes n times as `2xAG@y`."""
    names: dict[str, int] = {}
    for one in collectives:
        name = f"{SHORT[one.kind]}@{one.axis}"
        names[name] = names.get(name, 0) + one.count
    return " ".join(name if count == 1 else f"{count}x{name}" for name, count in names.items())


def mib(received: Fraction | None) -> str:
    """Bytes in MiB; a scalar's shows as 0.0."""
    return "" if received is None else f"{float(received) / 2**20:.1f}" if received else "0"


def print_explicit(console: Console, products: Iterable[tuple[str, Sequence[str], Sequence[Any], Fraction]]) -> None:
    """The explicit algorithms: name, layout of x, collectives, what a device receives."""
    title = "y = x w by the explicit algorithms of grid/matmul.py, w and y in blocks S0,S1"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for heading in ("algorithm", "x", "forward"):
        table.add_column(heading, no_wrap=True)
    table.add_column("MiB", justify="right", no_wrap=True)
    for name, layout, collectives, received in products:
        table.add_row(name, ",".join(layout), short(collectives), mib(received))
    console.print(table)


def summary_line(name: str, counts: Mapping[str, int]) -> str:
    """How often each moves fewer."""
    return (
        f"{name}: of {counts['rows']} DTensor moves fewer bytes in {counts['torch_fewer']}, Shardy in "
        f"{counts['jax_fewer']}, equal in {counts['equal']}; refused by DTensor {counts['torch_refused']}, "
        f"by Shardy {counts['jax_refused']}, by JAX's explicit types {counts['jax_types_refuse']}"
    )
