"""The command `parity scaling`: bytes and temporaries a GPU of 1D and 2D plans as the mesh grows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from parity.ask import ask_collectives
from parity.cli_calibrate import print_json
from parity.cli_common import (
    JaxPython,
    RefusedError,
    TorchPython,
    console,
    error_console,
    one_line_errors,
    parse_sizes,
    progress_bar,
    sizes_text,
)
from parity.report.scaling import plot_curves, print_crossovers, print_curves, print_temporaries
from parity.run import worker_commands
from parity.scaling import (
    BLOCK,
    DIMS,
    GPUS,
    ONE_D,
    PANEL,
    SIDES,
    TWO_D,
    block_questions,
    crossover,
    curve_of,
    pair_questions,
    sentence,
)


def scaling(
    dims: Annotated[
        str | None, typer.Option(help="Other sizes, e.g. M=4096,D=8192,F=32768.", show_default=sizes_text(DIMS))
    ] = None,
    plot: Annotated[Path, typer.Option(help="Where to draw the curves.")] = Path("scaling.png"),
    torch_python: TorchPython = sys.executable,
    jax_python: JaxPython = sys.executable,
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of tables.")] = False,
) -> None:
    """Trace a pair of products, 1D and 2D, on 4 to 256 GPUs that are not there: bytes received, slopes, crossovers.

    The closed formulas are held to what PyTorch dispatches and XLA compiles for A100s (without the extra a100 it is
    not asked). Below: what a product holds beside its blocks on grids of 2 x 2 to 16 x 16.

    Exit codes: 0 the traces are the formulas, 1 one differs, 2 bad input, 3 a worker failed or ran out of time.
    """
    with one_line_errors():
        sizes = {**DIMS, **(parse_sizes(dims, "--dims") if dims else {})}
        if unknown := [name for name in sizes if name not in DIMS]:
            raise RefusedError(f"--dims {unknown[0]}: there are M, D, F")
        if bad := [name for name, size in sizes.items() if size % max(GPUS)]:
            raise RefusedError(f"--dims {bad[0]}={sizes[bad[0]]}: {max(GPUS)} GPUs must divide it")
        if not plot.parent.is_dir():
            raise RefusedError(f"--plot {plot}: there is no directory {plot.parent}")
        commands = worker_commands(torch_python, jax_python)
        questions = [*pair_questions(sizes), *block_questions()]
        with progress_bar(2 * len(questions)) as on_event:
            answers = ask_collectives(questions, commands, on_event)
        if skipped := next((one.skipped for one in answers["jax"].values() if one.skipped), ""):
            error_console.print(f"XLA was not asked: {skipped}", soft_wrap=True, markup=False, highlight=False)
            del answers["jax"]
        curves = [curve_of(plan, sizes, answers) for plan in (*ONE_D, *TWO_D)]
        plot_curves(curves, sizes, plot)
    found = {plan: [crossover(plan, p, sizes) for p in GPUS] for plan in TWO_D}
    held = {
        name: {plan: [answers[name][f"block/{plan}/{q}"].temporary_bytes for q in SIDES] for plan in TWO_D}
        for name in answers
    }
    if as_json:
        print_json(
            {
                "dims": sizes,
                "curves": [curve.to_json() for curve in curves],
                "crossover_tokens_over_width": {
                    plan: [None if value is None else float(value) for value in values]
                    for plan, values in found.items()
                },
                "temporaries": {"sides": SIDES, "block": BLOCK, "panel": PANEL, "bytes": held},
                "plot": str(plot),
            }
        )
    else:
        print_curves(console, curves, sizes)
        lines = (
            "1D receives as much a GPU however many there are, so all GPUs together receive O(p); 2D's GPUs receive "
            "O(1/sqrt p), all together O(sqrt p).",
            sentence(sizes),
        )
        print_crossovers(console, found, GPUS, lines)
        print_temporaries(console, held, SIDES, BLOCK, PANEL)
        console.print(f"[dim]{plot}[/]", soft_wrap=True, highlight=False)
    raise typer.Exit(1 if any(curve.differs for curve in curves) else 0)
