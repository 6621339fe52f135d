"""`parity guide`: what is called what in the two frameworks, with the functions of this project that use it."""

from __future__ import annotations

from typing import Annotated

import typer

from parity.cli_common import console, one_line_errors
from parity.guide import tables


def guide(
    concept: Annotated[
        str | None, typer.Argument(metavar="CONCEPT", help="Show the pair of functions that uses it.")
    ] = None,
    differences: Annotated[
        bool, typer.Option("--differences", help="Where the two packages differ in names, and why.")
    ] = False,
) -> None:
    """What is called what in the two frameworks, and where their defaults differ; CONCEPT shows it in use."""
    with one_line_errors():
        if concept is not None:
            console.print(tables.pair_of_concept(concept))
            return
        if differences:
            console.print(tables.differences())
            return
        for table in (tables.concepts(), tables.defaults(), tables.lessons()):
            console.print(table, "")
    console.print("[dim]parity guide CONCEPT shows a concept in use, on both sides; --differences all other names.[/]")
    console.print(
        "[dim]A lesson: python -m MODULE, or under torchrun or mpiexec with 4 processes; both print the same.[/]"
    )
