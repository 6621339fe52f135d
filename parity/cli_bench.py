"""The command `parity bench`: how fast plans are on the devices at hand, beside each other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from parity.bench_grid import PANELS, SIZES, Ratio, bench_grid, bench_questions
from parity.cli_common import (
    DEVICES,
    JaxPython,
    RefusedError,
    TorchPython,
    check_choice,
    console,
    one_line_errors,
    parse_sizes,
    print_json,
    progress_bar,
    sizes_over,
)
from parity.gpus import check_gpus
from parity.run import worker_commands
from parity.sizes import sizes_text

bench = typer.Typer(no_args_is_help=True)


@bench.callback()
def _bench() -> None:
    """How fast plans are on the devices at hand, beside each other."""


@bench.command("grid")
def grid(
    sizes: Annotated[
        str | None, typer.Option("--dims", help="Other sizes, e.g. M=4096.", show_default=sizes_text(SIZES))
    ] = None,
    mesh: Annotated[str, typer.Option(help="The grid.")] = "x=2,y=2",
    panel: Annotated[
        list[int] | None, typer.Option(min=1, help="Of summa. Repeatable.", show_default=", ".join(map(str, PANELS)))
    ] = None,
    forward: Annotated[bool, typer.Option("--forward", help="Forward only; else both passes, too.")] = False,
    pairs: Annotated[int, typer.Option(min=1, help="Runs of each plan, in turns with gathered.")] = 7,
    dtype: Annotated[str, typer.Option(help="float32 | float64 | bfloat16")] = "float32",
    device: Annotated[str, typer.Option(help="cpu | cuda")] = "cpu",
    torch_python: TorchPython = sys.executable,
    jax_python: JaxPython = sys.executable,
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of tables.")] = False,
) -> None:
    """Time y = x w by the plans of the grid, each in turns with gathered; prints ratios, no absolute times.

    A ratio is that of the slowest rank's seconds of two runs next to each other; shown are the median and the range.

    Exit codes: 0 done, 2 bad input, 3 a worker failed or ran out of time.
    """
    with one_line_errors():
        given = sizes_over(SIZES, sizes)
        axes = parse_sizes(mesh, "--mesh")
        check(given, axes, device, dtype)
        check_gpus(device, axes["x"] * axes["y"])
        commands = worker_commands(torch_python, jax_python, device)
        questions = [
            question
            for backward in ([False] if forward else [False, True])
            for question in bench_questions(given, axes, panel or PANELS, backward, dtype)
        ]
        with progress_bar({(name, "ranks"): len(questions) for name in commands}) as on_event:
            found = {
                name: bench_grid(name, command, questions, device, pairs, on_event)
                for name, command in commands.items()
            }
    if as_json:
        print_json({name: [ratio.to_json() for ratio in ratios] for name, ratios in found.items()})
        return
    shape = ", ".join(f"{name}={size}" for name, size in given.items())
    for name, ratios in found.items():
        console.print(
            ratio_table(f"{name}: seconds over those of gathered; {mesh}, {shape}, {dtype}, {device}", ratios)
        )


def check(sizes: dict[str, int], axes: dict[str, int], device: str, dtype: str) -> None:
    """Raises RefusedError for what no grid can do."""
    if tuple(axes) != ("x", "y"):
        raise RefusedError(f"--mesh: the axes are x and y, not {', '.join(axes)}; e.g. --mesh x=2,y=2")
    for name, size in sizes.items():
        if size % (axes["x"] * axes["y"]):
            raise RefusedError(f"--dims {name}={size}: {axes['x'] * axes['y']} devices must divide it")
    check_choice("--device", device, DEVICES)
    check_choice("--dtype", dtype, ("float32", "float64", "bfloat16"))


def ratio_table(title: str, ratios: Sequence[Ratio]) -> Table:
    """A line a plan and panel; the best of summa in bold."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for heading in ("plan", "passes"):
        table.add_column(heading, no_wrap=True)
    for heading in ("panel", "median", "lowest", "highest"):
        table.add_column(heading, justify="right", no_wrap=True)
    for backward in (False, True):
        own = [ratio for ratio in ratios if ratio.question.backward is backward]
        best = min((one for one in own if one.question.plan == "summa"), key=lambda one: one.median, default=None)
        for one in own:
            cells = [f"{value:.2f}" for value in (one.median, min(one.ratios), max(one.ratios))]
            passes = "forward, backward" if backward else "forward"
            table.add_row(
                one.question.plan, passes, str(one.question.panel or ""), *cells, style="bold" if one is best else ""
            )
    return table
