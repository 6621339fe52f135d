"""The command `parity scaling`: bytes and temporaries a GPU of 1D and 2D plans as the mesh grows."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from parity.ask import ask_collectives
from parity.cli_common import (
    JaxPython,
    RefusedError,
    TorchPython,
    console,
    error_console,
    one_line_errors,
    print_json,
    progress_bar,
    sizes_over,
)
from parity.question_contract import Answer
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
    Curve,
    block_questions,
    crossover,
    curve_of,
    pair_questions,
    sentence,
)
from parity.sizes import sizes_text

ByFramework = dict[str, dict[str, Answer]]  # framework -> question's id -> its answer


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
        sizes = sizes_over(DIMS, dims)
        if bad := [name for name, size in sizes.items() if size % max(GPUS)]:
            raise RefusedError(f"--dims {bad[0]}={sizes[bad[0]]}: {max(GPUS)} GPUs must divide it")
        if not plot.parent.is_dir():
            raise RefusedError(f"--plot {plot}: there is no directory {plot.parent}")
        commands = worker_commands(torch_python, jax_python)
        questions = [*pair_questions(sizes), *block_questions()]
        with progress_bar({(name, "trace"): len(questions) for name in commands}) as on_event:
            answers = ask_collectives(questions, commands, on_event)
    if skipped := next((one.skipped for one in answers["jax"].values() if one.skipped), ""):
        error_console.print(f"XLA was not asked: {skipped}", soft_wrap=True, markup=False, highlight=False)
        del answers["jax"]
    curves = [curve_of(plan, sizes, answers) for plan in (*ONE_D, *TWO_D)]
    plot_curves(curves, sizes, plot)
    if as_json:
        print_json({**figures(curves, answers, sizes), "plot": str(plot)})
    else:
        print_tables(curves, answers, sizes)
        console.print(f"[dim]{plot}[/]", soft_wrap=True, highlight=False)
    raise typer.Exit(1 if any(curve.differs for curve in curves) else 0)


def figures(curves: list[Curve], answers: ByFramework, sizes: dict[str, int]) -> dict[str, Any]:
    """All there is, as JSON."""
    return {
        "dims": sizes,
        "curves": [curve.to_json() for curve in curves],
        "crossover_tokens_over_width": {
            plan: [None if value is None else float(value) for value in values]
            for plan, values in crossovers(sizes).items()
        },
        "temporaries": {"sides": SIDES, "block": BLOCK, "panel": PANEL, "bytes": temporaries(answers)},
    }


def print_tables(curves: list[Curve], answers: ByFramework, sizes: dict[str, int]) -> None:
    """Bytes received, where 2D receives fewer, and what products hold."""
    print_curves(console, curves, sizes)
    lines = (
        "1D receives as much a GPU however many there are, so all GPUs together receive O(p); 2D's GPUs receive "
        "O(1/sqrt p), all together O(sqrt p).",
        sentence(sizes),
    )
    print_crossovers(console, crossovers(sizes), GPUS, lines)
    print_temporaries(console, temporaries(answers), SIDES, BLOCK, PANEL)


def crossovers(sizes: dict[str, int]) -> dict[str, list[Fraction | None]]:
    """plan -> M / D of the crossover on each number of GPUs."""
    return {plan: [crossover(plan, p, sizes) for p in GPUS] for plan in TWO_D}


def temporaries(answers: ByFramework) -> dict[str, dict[str, list[int | None]]]:
    """framework -> plan -> bytes on the grid of each side."""
    return {
        name: {plan: [answers[name][f"block/{plan}/{q}"].temporary_bytes for q in SIDES] for plan in TWO_D}
        for name in answers
    }
