"""The command `parity train`: whole trainings on real data in both frameworks, judged and plotted."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from parity.cli_common import (
    DEVICES,
    JaxPython,
    TorchPython,
    check_choice,
    console,
    counting_bar,
    error_console,
    one_line_errors,
    progress_bar,
)
from parity.contract import ContractError
from parity.curves import MODELS, judge, plot_curves, run_training, set_up
from parity.curves.noise import SAMPLES
from parity.gpus import check_gpus
from parity.report.curves import print_judgement
from parity.run import worker_commands


def train(
    model: Annotated[str, typer.Option(help=" | ".join(MODELS))] = "gpt",
    tp: Annotated[int, typer.Option(min=1, help="Devices on the axis tp.")] = 4,
    steps: Annotated[int, typer.Option(min=10, help="Of the optimizer.")] = 50,
    dtype: Annotated[str, typer.Option(help="float32 | float64")] = "float32",
    style: Annotated[str, typer.Option(help="auto | typed | manual")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Directory of the run.", show_default="runs/train-<time>")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial state and of the batches.")] = 0,
    device: Annotated[str, typer.Option(help="cpu | cuda")] = "cpu",
    torch_python: TorchPython = sys.executable,
    jax_python: JaxPython = sys.executable,
    case_limit: Annotated[float, typer.Option(min=1, help="Seconds a framework may take before it is given up.")] = 300,
) -> None:
    """Train a model in both frameworks: gpt on the source of Python's standard library, vit on images of digits.

    Both get the same state and batches. Judged: the losses, the norms, and the last step's parameters and moments, from
    the same training in NumPy, by what rounding explains; and that the loss falls. Writes curves.png, curves.svg and
    curves.json into the directory of the run.

    Exit codes: 0 they agree and learn, 1 a finding, 2 bad input, 3 a worker failed or ran out of time.
    """
    with one_line_errors():
        check_choice("--device", device, DEVICES)
        training = set_up(model, tp, steps, dtype, style, seed)
        check_gpus(device, tp)
        commands = worker_commands(torch_python, jax_python, device)
        directory = out or Path("runs") / f"train-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
        with progress_bar({(name, "ranks"): 1 for name in commands}) as on_event:
            run_training(training, directory, commands, device, case_limit, on_event)
        with counting_bar("judging: how far rounding may go", SAMPLES) as on_sample:
            try:
                judgement = judge(training, directory, on_sample)
            except ContractError as error:
                error_console.print(f"[bold red]error:[/] {error}", soft_wrap=True, highlight=False)
                raise typer.Exit(3) from None
        (directory / "curves.json").write_text(json.dumps(judgement.to_json(), indent=1))
        pictures = [directory / f"curves.{suffix}" for suffix in ("png", "svg")]
        for picture in pictures:
            plot_curves(judgement, picture)
    print_judgement(console, judgement)
    console.print(f"[dim]{pictures[0]}[/]", soft_wrap=True, highlight=False)
    raise typer.Exit(1 if judgement.findings else 0)
