"""The command `parity`: list the cases, run them, compare a finished run again, show a case's two functions."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from parity.cases import SUITES, matches, select
from parity.cases.family import NUMERICS, TRAINING, Selection
from parity.cli_bench import bench
from parity.cli_calibrate import calibrate
from parity.cli_common import (
    DEVICES,
    JaxPython,
    RefusedError,
    TorchPython,
    check_choice,
    console,
    counting_bar,
    error_console,
    one_line_errors,
    parse_sizes,
    progress_bar,
)
from parity.cli_doctor import doctor
from parity.cli_guide import guide
from parity.cli_partitioners import partitioners
from parity.cli_predict import advise_step, predict_step
from parity.cli_scaling import scaling
from parity.cli_train import train
from parity.compare import compare
from parity.contract import Case
from parity.gpus import check_gpus
from parity.guide import source_of_case
from parity.report.case_list import describe_cases
from parity.report.detail import render_case
from parity.report.terminal import print_comparison, spent_line
from parity.run import Command, Manner, begun_run, execute, resume_run, start_run, undone, worker_commands
from parity.rundir import read_run
from parity.spent import time_spent

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Tensor parallelism in PyTorch and in JAX: are the two equal, how is it called over there, what does it cost?",
)

JUDGED = (*NUMERICS, *TRAINING)

GLOB_HELP = "Case ids, whole or up to one of their slashes; `*` stands for anything."
SUITE_HELP = f"{' | '.join(SUITES)}; `run` without GLOBs takes smoke, else it is full."
Globs = Annotated[list[str] | None, typer.Argument(metavar="GLOB", help=GLOB_HELP)]
Suite = Annotated[str | None, typer.Option(help=SUITE_HELP)]
Meshes = Annotated[list[str] | None, typer.Option("--mesh", help="In place of the suite's, e.g. tp=4. Repeatable.")]
Dtypes = Annotated[list[str] | None, typer.Option("--dtype", help=f"One of {', '.join(JUDGED)}. Repeatable.")]
Dims = Annotated[str | None, typer.Option("--dims", help="Other sizes, e.g. D=1024,F=4096.")]
AllRows = Annotated[bool, typer.Option("--all-rows", help="A row for every case, however many there are.")]
Seed = Annotated[int, typer.Option(min=0, help="Of state and batch.")]


def make_selection(
    suite: str | None, globs: list[str], meshes: Iterable[str], dtypes: list[str], dims: str | None, seeds: range
) -> tuple[Selection, ...]:
    """The suite with what the options put in its place."""
    name = suite or ("full" if globs else "smoke")
    check_choice("--suite", name, SUITES)
    for dtype in dtypes:
        check_choice("--dtype", dtype, JUDGED)
    given: dict[str, Any] = {"seeds": tuple(seeds)}
    if meshes:
        given["meshes"] = tuple(parse_sizes(mesh, "--mesh") for mesh in meshes)
    if dtypes:
        given["numerics"] = tuple(dtypes)
    if dims:
        given["dims"] = parse_sizes(dims, "--dims")
    return tuple(replace(selection, **given) for selection in SUITES[name])


@app.command("list")
def list_cases(
    globs: Globs = None,
    suite: Suite = None,
    mesh: Meshes = None,
    dtype: Dtypes = None,
    dims: Dims = None,
    ids: Annotated[bool, typer.Option("--ids", help="Every id, one a line, and nothing else.")] = False,
) -> None:
    """List the cases: for each plan and its options the layouts, collectives, styles, meshes and dtypes."""
    with one_line_errors():
        names = globs or []
        cases = select(make_selection(suite or "full", names, mesh or [], dtype or [], dims, range(1)), names)
    if ids:
        for case in cases:
            typer.echo(case.id)
        return
    for heading, members in itertools.groupby(cases, lambda case: "/".join(case.id.split("/")[:3])):
        console.print(describe_cases(heading, list(members), console.width), soft_wrap=True, highlight=False)
    console.print(f"{len(cases)} cases; --ids prints the id of each")


@app.command()
def run(
    globs: Globs = None,
    suite: Suite = None,
    mesh: Meshes = None,
    dtype: Dtypes = None,
    dims: Dims = None,
    device: Annotated[str, typer.Option(help="cpu | cuda")] = "cpu",
    process_a_device: Annotated[
        bool, typer.Option("--process-a-device", help="JAX on the CPU: not one process for all, but as on GPUs.")
    ] = False,
    timings: Annotated[
        bool, typer.Option("--timings", help="To compare times: XLA optimises in full, and nothing runs beside.")
    ] = False,
    seed: Seed = 0,
    num_seeds: Annotated[int, typer.Option(min=1, help="Run every case with this many seeds, from --seed on.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Directory of the run.", show_default="runs/<time>")] = None,
    resume: Annotated[Path | None, typer.Option(help="Do what is left of the run in this directory.")] = None,
    torch_python: TorchPython = sys.executable,
    jax_python: JaxPython = sys.executable,
    case_limit: Annotated[float, typer.Option(min=1, help="Seconds that a case may take before it is given up.")] = 120,
    all_rows: AllRows = False,
) -> None:
    """Run cases in both frameworks and compare.

    Exit codes: 0 all pass, 1 a finding, 2 bad input, 3 a worker failed or ran out of time, 130 interrupted.
    """
    with one_line_errors():
        check_choice("--device", device, DEVICES)
        if resume is not None:
            if globs or suite or mesh or dtype or dims or out:
                raise RefusedError("--resume does what is left of a run: leave out GLOBs, --suite, --out ...")
            directory, (cases, manner) = resume, begun_run(resume, case_limit)
        else:
            directory = out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
            manner = Manner(device, process_a_device, timings, case_limit)
            names, seeds = globs or [], range(seed, seed + num_seeds)
            cases = select(make_selection(suite, names, mesh or [], dtype or [], dims, seeds), names)
        check_gpus(manner.device, max(case.num_devices for case in cases))
        commands = worker_commands(torch_python, jax_python, manner.device)
        if resume is None:
            start_run(directory, cases, {**manner.settings, "seed": seed, "arguments": sys.argv[1:]})
        else:
            resume_run(directory)
        run_groups(directory, cases, commands, manner)
        started = time.monotonic()
        comparison = compare_and_write(directory, all_rows)
    spent = spent_line(time_spent(directory), time.monotonic() - started)
    console.print(Text(f"{spent}\n{directory / 'comparison.json'}", "dim"), soft_wrap=True)
    raise typer.Exit(exit_code(comparison))


def run_groups(directory: Path, cases: Sequence[Case], commands: Mapping[str, Command], manner: Manner) -> None:
    """All that is left of a run, with a bar; Ctrl-C ends with a line that says how to go on."""
    try:
        with progress_bar(undone(directory, cases, commands, manner)) as on_event:
            execute(directory, cases, commands, manner, on_event)
    except KeyboardInterrupt:
        error_console.print(f"interrupted: `parity run --resume {directory}` does the rest", soft_wrap=True)
        raise typer.Exit(130) from None


def compare_and_write(directory: Path, all_rows: bool) -> dict[str, Any]:
    """Compare a run from its files, write comparison.json and print the tables."""
    run = read_run(directory)
    with counting_bar("comparing", len(run.cases)) as on_case:
        comparison = compare(run, on_case=on_case)
    (directory / "comparison.json").write_text(json.dumps(comparison, indent=1))
    print_comparison(console, comparison, all_rows)
    if finding := next((case["id"] for case in comparison["cases"] if case["verdict"] == "fail"), None):
        console.print(Text(f"all there is of a case: parity compare {directory} {finding}", "dim"), soft_wrap=True)
    return comparison


def compare_some(directory: Path, globs: list[str]) -> dict[str, Any]:
    """Compare some cases of a run and print all there is of them; comparison.json stays as it is."""
    run = read_run(directory)
    for glob in globs:
        if not any(matches(case.id, glob) for case in run.cases):
            raise RefusedError(f"no case of {directory} matches {glob!r}")
    chosen = [case for case in run.cases if any(matches(case.id, glob) for glob in globs)]
    with counting_bar("comparing", len(chosen)) as on_case:
        comparison = compare(run, chosen, on_case)
    for case in comparison["cases"]:
        console.print(render_case(case))
    return comparison


def exit_code(comparison: dict[str, Any]) -> int:
    """3 if a worker failed, else 1 if a case did, else 0."""
    summary = comparison["summary"]
    return 3 if summary["error"] else 1 if summary["fail"] else 0


@app.command("compare")
def compare_run(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run.")],
    globs: Annotated[list[str] | None, typer.Argument(metavar="CASE", help="Show all of these cases.")] = None,
    all_rows: AllRows = False,
) -> None:
    """Compare a run again from its files, needing neither framework; with CASEs, show all that there is of them."""
    with one_line_errors():
        comparison = compare_some(directory, globs) if globs else compare_and_write(directory, all_rows)
    raise typer.Exit(exit_code(comparison))


@app.command()
def show(case_id: Annotated[str, typer.Argument(metavar="CASE", help="A case id, or the start of one.")]) -> None:
    """Show the two functions that a case compares, side by side."""
    with one_line_errors():
        program = "/".join(case_id.split("/")[:4])  # mesh, dtype and sizes do not change what there is to show
        console.print(source_of_case(select(SUITES["full"], [program])[0]))


app.command()(train)
app.command()(guide)
app.command("predict")(predict_step)
app.command("advise")(advise_step)
app.command()(calibrate)
app.command()(scaling)
app.command()(partitioners)
app.add_typer(bench, name="bench")
app.command()(doctor)


def main() -> None:
    """The entry point of the command."""
    app()


if __name__ == "__main__":
    main()
