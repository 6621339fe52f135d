"""The command `parity calibrate`: a machine file from logs or from this machine; how well one predicts a log."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from parity.calibrate import (
    Calibration,
    calibrate_from_logs,
    check_points,
    compare_with_peers,
    held_out,
    predicted,
    read_measurements,
)
from parity.calibrate.local import RANKS, calibrate_local, check_place, questions
from parity.cli_common import JaxPython, RefusedError, TorchPython, console, one_line_errors, print_json, progress_bar
from parity.cost import load_machine
from parity.gpus import check_gpus
from parity.report.calibration import print_bands, print_check, print_peers
from parity.run import Command, worker_commands

Logs = Annotated[
    list[Path] | None, typer.Argument(metavar="LOG", help="Text output of nccl-tests; CSV where it ends in .csv.")
]
Ranks = Annotated[
    list[int] | None, typer.Option(min=2, help="With --local: how many processes. Repeatable.", show_default="2, 4")
]


def calibrate(
    logs: Logs = None,
    name: Annotated[
        str | None, typer.Option(help="Of the machine to write; with --local it is local if not named.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The machine it is most like; gives what was not measured.",
            show_default="perlmutter; with --local: local",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The machine file to write.", show_default="NAME.toml")] = None,
    machine: Annotated[str | None, typer.Option(help="With --check: a machine, by name or .toml file.")] = None,
    check_path: Annotated[Path | None, typer.Option("--check", help="Log or CSV to predict and compare with.")] = None,
    is_held_out: Annotated[
        bool,
        typer.Option("--held-out", help="With --check: fit to the rest of FILE, and predict what was left out."),
    ] = False,
    local: Annotated[bool, typer.Option("--local", help="Measure this machine with each framework.")] = False,
    ranks: Ranks = None,
    device: Annotated[str, typer.Option(help="With --local: cpu | cuda")] = "cpu",
    torch_python: TorchPython = sys.executable,
    jax_python: JaxPython = sys.executable,
    as_json: Annotated[bool, typer.Option("--json", help="Figures as JSON in place of tables.")] = False,
) -> None:
    """Fit a machine file to measured collectives, or say how well one predicts them.

    LOG... --name mycluster writes mycluster.toml and a plot, mycluster.png. --machine perlmutter --check LOG compares;
    with --held-out it compares with points that were not fitted on.
    --local measures this machine and writes local-torch.toml and local-jax.toml.

    Exit codes: 0 done, 2 bad input, 3 a worker failed or ran out of time.
    """
    with one_line_errors():
        if [bool(logs), check_path is not None, local].count(True) != 1:
            raise RefusedError("give one of: LOG... --name NAME; --machine NAME --check FILE; --local")
        if machine is not None and check_path is None:
            raise RefusedError("--machine goes with --check; the machine that a new one is like is named with --base")
        if is_held_out and check_path is None:
            raise RefusedError("--held-out goes with --check")
        if check_path is not None:
            compare_with_file(machine, check_path, is_held_out, as_json)
        elif local:
            path = machine_path(name := name or "local", out)
            if device == "cuda" and base is None:
                raise RefusedError("--device cuda: name with --base the machine that this one is most like")
            check_place(ranks := ranks or list(RANKS), device, base := base or "local")
            check_gpus(device, max(ranks))
            commands = worker_commands(torch_python, jax_python, device)
            measure_here(name, path, base, ranks, device, commands, as_json)
        else:
            fit_logs(logs or [], name, base or "perlmutter", out, as_json)


def fit_logs(logs: list[Path], name: str | None, base: str, out: Path | None, as_json: bool) -> None:
    """Fit a machine to logs and write it."""
    if name is None:
        raise RefusedError("--name is missing: what to call the machine")
    path = machine_path(name, out)
    figures = write(calibrate_from_logs(logs, name, base), path, as_json)
    if as_json:
        print_json(figures)


def machine_path(name: str, out: Path | None) -> Path:
    """Where the machine file goes; refuses a name or a place that cannot be, before anything is measured."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise RefusedError(f"--name {name!r}: letters, digits, '.', '_' and '-'")
    path = out or Path(f"{name}.toml")
    if path.suffix != ".toml":
        raise RefusedError(f"--out {path}: must end in .toml")
    if not path.parent.is_dir():
        raise RefusedError(f"--out {path}: there is no directory {path.parent}")
    return path


def compare_with_file(machine: str | None, path: Path, is_held_out: bool, as_json: bool) -> None:
    """How well a machine predicts a log or CSV, ours and the models of others."""
    if machine is None:
        raise RefusedError("--machine is missing: which machine should predict the file")
    described, measurements = load_machine(machine), read_measurements([path])
    points, skipped = held_out(measurements, machine) if is_held_out else predicted(described, measurements)
    if not points:
        reasons = "; ".join(skipped)
        raise RefusedError(f"{path}: nothing in it that {described.name} can predict: {reasons}")
    result, peers = check_points(described.name, points, skipped), compare_with_peers(described, points)
    if as_json:
        print_json({**result.to_json(), "held_out": is_held_out, "models": [vars(row) for row in peers]})
        return
    title = f"{described.name} on {path.name}"
    print_check(console, result, f"{title}, fitted again without what is predicted" if is_held_out else title)
    print_peers(console, peers)
    if not is_held_out:
        console.print(
            "Of points that the machine was fitted to, these are residuals and no predictions: --held-out has those.",
            style="dim",
        )


def measure_here(
    name: str, path: Path, base: str, ranks: list[int], device: str, commands: Mapping[str, Command], as_json: bool
) -> None:
    """Measure with each framework, and write a machine of each: NAME-torch in PATH-torch.toml, and so for jax."""
    total = sum(len(questions(number, device)) for number in ranks)
    with progress_bar({(name, "ranks"): total for name in commands}) as on_event:
        fitted = {
            framework: calibrate_local(framework, command, f"{name}-{framework}", base, ranks, device, on_event)
            for framework, command in commands.items()
        }
    figures = {
        framework: write(result, path.with_stem(f"{path.stem}-{framework}"), as_json)
        for framework, result in fitted.items()
    }
    if as_json:
        print_json(figures)


def write(result: Calibration, path: Path, as_json: bool) -> dict[str, Any]:
    """Write the machine file and the plot beside it, print the residuals; returns them as JSON."""
    picture = path.with_suffix(".png")
    try:
        path.write_text(result.text, encoding="utf-8")
        result.plot(picture)
    except OSError as error:
        raise RefusedError(f"{error.filename}: cannot be written ({error.strerror})") from None
    if not as_json:
        print_check(console, result.residuals, f"{result.machine.name} on what it was fitted to")
        print_bands(console, result.machine)
        console.print(f"[dim]{path}\n{picture}[/]", soft_wrap=True, highlight=False)
    return {**result.residuals.to_json(), "file": str(path), "plot": str(picture)}
