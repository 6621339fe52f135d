"""The command `parity partitioners`: what DTensor and XLA insert into a program, in every layout of its operands."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated

import typer

from parity.ask import ask_collectives
from parity.cli_common import (
    JaxPython,
    TorchPython,
    check_choice,
    console,
    error_console,
    one_line_errors,
    print_json,
    progress_bar,
    sizes_over,
)
from parity.partitioners import DIMS, MESH, PROGRAMS, Row, explicit_products, questions_of, rows_of, summary_of
from parity.received import received_bytes
from parity.report.partitioners import LEGEND, print_explicit, print_program, summary_line
from parity.run import worker_commands
from parity.sizes import sizes_text

Programs = Annotated[
    list[str] | None, typer.Argument(metavar="PROGRAM", help=f"{', '.join(PROGRAMS)}; all if none is named.")
]


def partitioners(
    programs: Programs = None,
    dims: Annotated[
        str | None, typer.Option(help="Other sizes, e.g. M=1024,K=8192.", show_default=sizes_text(DIMS))
    ] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16 | float32 | float64")] = "bfloat16",
    torch_python: TorchPython = sys.executable,
    jax_python: JaxPython = sys.executable,
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of tables.")] = False,
) -> None:
    """Ask both partitioners about every combination of layouts on a 2 x 2 mesh; needs no device.

    DTensor's propagation on a process group that is not there, as on GPUs; XLA's as it compiles for A100s (without
    the extra a100 it is not asked). Partial sums are made whole, the layout of the result is the partitioner's choice.

    Exit codes: 0 done, 2 bad input, 3 a worker failed or ran out of time.
    """
    with one_line_errors():
        names = programs or list(PROGRAMS)
        for name in names:
            check_choice("PROGRAM", name, PROGRAMS)
        check_choice("--dtype", dtype, ("bfloat16", "float32", "float64"))
        sizes = sizes_over(DIMS, dims)
        commands = worker_commands(torch_python, jax_python)
        questions = questions_of(names, sizes, dtype)
        with progress_bar({(name, "trace"): len(questions) for name in commands}) as on_event:
            rows = rows_of(questions, ask_collectives(questions, commands, on_event))
    if rows[0].jax.skipped:
        error_console.print(f"XLA was not asked: {rows[0].jax.skipped}", soft_wrap=True, markup=False, highlight=False)
    by_program = {name: [row for row in rows if row.question.id.split("/")[0] == name] for name in names}
    if as_json:
        print_json(
            {
                "mesh": MESH,
                "dims": sizes,
                "summary": {"all": summary_of(rows), **{name: summary_of(own) for name, own in by_program.items()}},
                "rows": [row.to_json() for row in rows],
                "explicit": [
                    {"algorithm": name, "x": x, "received_bytes": float(received_bytes(collectives, MESH))}
                    for name, x, collectives in explicit_products(sizes, dtype)
                ],
            }
        )
        return
    print_tables(by_program, sizes, dtype)


def print_tables(by_program: Mapping[str, list[Row]], dims: Mapping[str, int], dtype: str) -> None:
    """A table a program, then the totals."""
    for name, rows in by_program.items():
        print_program(console, f"{name}: {PROGRAMS[name].title}", rows)
        if name == "matmul_to_blocks":
            products = explicit_products(dims, dtype)
            print_explicit(console, [(*one, received_bytes(one[2], MESH)) for one in products])
    console.print(LEGEND, style="dim", highlight=False)
    for name, rows in by_program.items():
        console.print(summary_line(name, summary_of(rows)), soft_wrap=True, highlight=False)
    everything = [row for rows in by_program.values() for row in rows]
    total = summary_of(everything)
    if len(by_program) > 1:
        console.print(summary_line("all", total), style="bold", soft_wrap=True, highlight=False)
    console.print(
        f"DTensor on a CPU mesh gathers and keeps its chunk where a CUDA mesh issues the A2A shown here: "
        f"{total['torch_differs_on_cpu']} rows",
        soft_wrap=True,
        highlight=False,
    )
