"""Two trainings as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from parity.contract import FRAMEWORKS
from parity.report.terminal import STYLE


def print_judgement(console: Console, judgement: Any) -> None:
    """A `parity.curves.Judgement`: the data, the table, what is wrong, the verdict."""
    case = judgement.case
    batch = ", ".join(f"{letter}={case.dims[letter]}" for letter in ("B", "S") if letter in case.dims)
    console.print(f"{case.id}: {case.recipe['num_steps']} steps of {batch}", soft_wrap=True, highlight=False)
    console.print(f"[dim]on {escape(judgement.source)}[/]", soft_wrap=True, highlight=False)
    console.print(curves_table(judgement))
    for finding in judgement.findings:
        console.print(f"[bold red]fail[/] {escape(finding)}", soft_wrap=True, highlight=False)
    console.print(Text(judgement.verdict, style=STYLE[judgement.verdict]))


def curves_table(judgement: Any) -> Table:
    """A row a framework; then the two from each other, and what the bounds make of a training that is a little wrong.

    Errors are the worst of all steps, in units of the bound that rounding explains.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    headings = ("loss,\nfirst", "loss,\nlast", "error:\nloss", "error:\nnorm", "error:\nparams")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for framework in FRAMEWORKS:
        loss, errors = judgement.curves[framework]["loss"], judgement.errors[framework]
        table.add_row(framework, f"{loss[0]:.4f}", f"{loss[-1]:.4f}", *(f"{errors[name]:.2f}" for name in errors))
    for label, errors in (("torch - jax", judgement.apart), ("control: rate + 0.1 %", judgement.control)):
        table.add_row(label, "", "", f"{errors['loss']:.2f}", f"{errors['norm']:.2f}", "")
    return table
