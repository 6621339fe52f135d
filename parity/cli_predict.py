"""The commands `parity predict` and `parity advise`: a training step on a machine that nobody has to own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from parity.cli_common import JaxPython, RefusedError, TorchPython, console, one_line_errors, parse_sizes, progress_bar
from parity.cost import list_machines, load_machine
from parity.cost.step import check_gpus
from parity.predict import Prediction, Question, predict
from parity.predict.advise import advise
from parity.predict.crossover import crossover, crossover_json
from parity.predict.prediction import SCHEMA_VERSION
from parity.predict.request import DATA_AXES
from parity.predict.sweep import Choice, plan_choices, sweep_json, tp_choices
from parity.presets import load_preset
from parity.report.prediction import print_prediction
from parity.report.sweep import print_advice, print_crossover, print_sweep
from parity.run import worker_commands
from parity.steps import trace_steps

MachineName = Annotated[str, typer.Option("--machine", help=f"{', '.join(list_machines())}, or a .toml file.")]
Mesh = Annotated[str, typer.Option("--mesh", help="Axes, outermost first: fsdp=2,tp=4, or a grid dp=2,x=2,y=2.")]
Model = Annotated[str, typer.Option("--model", help="A preset: gpt2, llama3-8b, llama3-70b, ...")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Sequences of a step, over the whole mesh.")]
Seq = Annotated[int | None, typer.Option("--seq", min=1, help="Tokens of a sequence; a ViT has its patches.")]
Plan = Annotated[
    str | None,
    typer.Option(
        "--plan",
        help="megatron | sequence_parallel, of a ViT its one, on a grid summa | stationary; "
        "without it the model's own first",
    ),
]
Style = Annotated[str | None, typer.Option("--style", help="auto (default) | typed | manual; on a grid manual")]
Dtype = Annotated[str, typer.Option("--dtype", help="bfloat16 | float32")]
Checkpoint = Annotated[
    bool, typer.Option("--checkpoint", help="Every block makes its activations again in the backward pass.")
]
XlaFlagsName = Annotated[
    str, typer.Option("--xla-flags", help="default | recommended: XLA's scheduler hides collectives behind work.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Figures as JSON in place of tables.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write the JSON to this file too.")]


def predict_step(
    machine: MachineName,
    mesh: Mesh,
    model: Model,
    batch: Batch,
    seq: Seq = None,
    plan: Plan = None,
    style: Style = None,
    dtype: Dtype = "bfloat16",
    checkpoint: Checkpoint = False,
    xla_flags: XlaFlagsName = "default",
    sweep: Annotated[
        str | None, typer.Option(help="tp: the mesh's GPUs by tp degree. plan: 1D and 2D, and where 2D wins.")
    ] = None,
    as_json: AsJson = False,
    out: Out = None,
    torch_python: TorchPython = sys.executable,
    jax_python: JaxPython = sys.executable,
) -> None:
    """Predict a training step without a GPU: what each framework sends, holds, and how long it takes.

    Exit codes: 0 done, 2 bad input, 3 neither framework could be traced.
    """
    with one_line_errors():
        check_out(out)
        sizes = parse_sizes(mesh, "--mesh")
        question = Question.of(
            load_machine(machine), load_preset(model), sizes, batch, seq, plan, style, dtype, checkpoint, xla_flags
        )
        trace = Tracer(torch_python, jax_python)
        if sweep is None:
            prediction = trace([question])[question.id]
            show(prediction.to_json(), as_json, out, partial(print_prediction, console, prediction))
        elif sweep == "tp":
            if question.is_on_grid:
                raise RefusedError("--sweep tp: a grid has no axis tp; take --sweep plan, or a mesh with tp")
            choices = trace.fill(tp_choices(question))
            title = f"{question.preset.name} on {question.num_gpus:,} GPUs of {question.machine.name}, by tp degree"
            show({"choices": sweep_json(choices)}, as_json, out, partial(print_sweep, console, choices, title))
        elif sweep == "plan":
            sweep_plans(question, trace, as_json, out)
        else:
            raise RefusedError(f"--sweep {sweep!r}: there are tp, plan")
    if not trace.is_traced:
        raise typer.Exit(3)


def sweep_plans(question: Question, trace: Tracer, as_json: bool, out: Path | None) -> None:
    """The plans on the question's mesh, and the crossover from 1D to 2D by number of GPUs."""
    choices = trace.fill(plan_choices(question))
    rows = crossover(question)
    title = f"{question.preset.name} on {question.num_gpus:,} GPUs of {question.machine.name}, by plan"

    def render() -> None:
        print_sweep(console, choices, title)
        print_crossover(console, rows, question.tokens // question.size(DATA_AXES))

    show({"choices": sweep_json(choices), "crossover": crossover_json(rows)}, as_json, out, render)


def advise_step(
    machine: MachineName,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="How many to train on.")],
    model: Model,
    batch: Batch,
    seq: Seq = None,
    plan: Plan = None,
    style: Style = None,
    dtype: Dtype = "bfloat16",
    checkpoint: Checkpoint = False,
    xla_flags: XlaFlagsName = "default",
    as_json: AsJson = False,
    out: Out = None,
    torch_python: TorchPython = sys.executable,
    jax_python: JaxPython = sys.executable,
) -> None:
    """Should this model be trained with tensor parallelism on these GPUs? Three conditions, computed; a tp degree.

    Exit codes: 0 done, 2 bad input, 3 neither framework could be traced.
    """
    with one_line_errors():
        check_out(out)
        described, sizes = load_machine(machine), {"fsdp": gpus}
        check_gpus(described, gpus)
        question = Question.of(
            described, load_preset(model), sizes, batch, seq, plan, style, dtype, checkpoint, xla_flags
        )
        trace = Tracer(torch_python, jax_python)
        choices = trace.fill(tp_choices(question))
        advice = advise(question, choices)
        title = f"{question.preset.name} on {gpus:,} GPUs of {question.machine.name}, by tp degree"

        def render() -> None:
            print_sweep(console, choices, title)
            print_advice(console, advice)

        show({**advice.to_json(), "choices": sweep_json(choices)}, as_json, out, render)
    if not trace.is_traced:
        raise typer.Exit(3)


def show(content: dict[str, Any], as_json: bool, out: Path | None, render: Callable[[], None]) -> None:
    """JSON to stdout or tables, and JSON to a file if one was named."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, "predicted": True, **content}, indent=1)
    if out is not None:
        try:
            out.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise RefusedError(f"--out {out}: cannot be written ({error.strerror})") from None
    if as_json:
        typer.echo(text)
    else:
        render()


class Tracer:
    """Traces questions in both frameworks and predicts each; all of one call go to one pair of workers."""

    def __init__(self, torch_python: str, jax_python: str) -> None:
        self.pythons = torch_python, jax_python
        self.is_traced = True  # at least one step, in one of the frameworks

    def __call__(self, questions: Sequence[Question]) -> dict[str, Prediction]:
        requests = [question.request() for question in questions]
        commands = worker_commands(*self.pythons)
        with progress_bar({(name, "trace"): len(requests) for name in commands}) as on_event:
            traces = trace_steps(requests, commands, on_event)
        self.is_traced = any(not one.skipped for answers in traces.values() for one in answers)
        return {
            question.id: predict(question, {name: answers[index] for name, answers in traces.items()})
            for index, question in enumerate(questions)
        }

    def fill(self, choices: Sequence[Choice]) -> list[Choice]:
        """The choices with the predictions of those that can be. Raises RefusedError where none can."""
        if choices and all(choice.refused for choice in choices):
            raise RefusedError("; ".join(f"{choice.name}: {choice.refused}" for choice in choices))
        asked = [choice.question for choice in choices if not choice.refused and not choice.closed]
        answers = self(asked) if asked else {}
        return [replace(choice, prediction=answers.get(choice.question.id)) for choice in choices]


def check_out(out: Path | None) -> None:
    """Refuses a file that cannot be written, before anything is traced."""
    if out is not None and not out.parent.is_dir():
        raise RefusedError(f"--out {out}: there is no directory {out.parent}")
