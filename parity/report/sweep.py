"""Sweeps and advice as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from parity.contract import FRAMEWORKS
from parity.predict.advise import Advice
from parity.predict.crossover import GRIDS, ONE_D, Sent, first_win
from parity.predict.prediction import FrameworkStep
from parity.predict.sweep import Choice, Verdict, activation_bytes, all_reduce_of, tensor_link, verdicts
from parity.report.prediction import print_skipped
from parity.report.quantities import size_text
from parity.report.tables import plain_table
from parity.report.terminal import duration
from parity.sizes import sizes_text

STYLE = {"recommended": "bold green", "possible": "", "avoid": "yellow", "impossible": "dim", "unknown": "dim"}


def print_sweep(console: Console, choices: Sequence[Choice], title: str) -> None:
    """A row a choice, and under the table why each got its verdict."""
    found = verdicts(choices)
    console.print(f"[bold]{escape(title)}, predicted[/]", highlight=False)
    console.print(sweep_table(choices, found), highlight=False)
    for choice, verdict in zip(choices, found, strict=True):
        line = Text(f"{verdict.word:11s} ", style=STYLE[verdict.word])
        line.append(f"{choice.name}: {verdict.why}", style="")
        console.print(line, highlight=False)
    print_skipped(console, [choice.prediction for choice in choices if choice.prediction])


def sweep_table(choices: Sequence[Choice], found: Sequence[Verdict]) -> Table:
    """Mesh, link and cost of one all-reduce of the activations; memory and step time of each framework."""
    table = plain_table()
    has_names = any(choice.name not in sizes_text(choice.question.mesh) for choice in choices)
    table.add_column("plan\n(from)" if has_names else "mesh")  # may wrap between a mesh's axes
    if not has_names:  # else the lines below have it
        table.add_column("link", no_wrap=True)
    sent = ("sent by\nits axes", "\ntime") if has_names else ("all-\nreduce", "time\nof one")
    for name in (*sent, "of the\nstep", *(f"{name}\npeak" for name in FRAMEWORKS)):
        table.add_column(name, justify="right", no_wrap=True)
    for name in FRAMEWORKS:
        table.add_column(f"{name}\nstep", justify="right", no_wrap=True)
    for choice, verdict in zip(choices, found, strict=True):
        mesh = sizes_text(choice.question.mesh).replace(",", ", ")
        cells = (["-"] * 8 if choice.refused else _sweep_cells(choice, has_names))[has_names:]
        if has_names:  # all in one column, since the others take most of 80; last, what the figures are from
            name = choice.name.replace("sequence_", "sequence_\n")
            mesh = f"{name}\n{mesh.replace(' ', '')}" + ("" if choice.refused else f"\n({choice.source})")
        table.add_row(mesh, *cells, style=STYLE[verdict.word])
    return table


def _sweep_cells(choice: Choice, of_plan: bool) -> list[Text | str]:
    """Of a plan all that its axes send, of a degree one all-reduce."""
    if of_plan:
        num_bytes, seconds = choice.tensor_traffic()
        sent = [size_text(num_bytes), duration(seconds)]
    else:
        one = all_reduce_of(choice.question)
        sent = [size_text(activation_bytes(choice.question)), duration(one.seconds)] if one else ["-", "-"]
    steps = [choice.prediction.steps.get(name) if choice.prediction else None for name in FRAMEWORKS]
    link, share = tensor_link(choice.question), f"{choice.share_of_tensor_axis():.0%}" if choice.steps else "-"
    return [link, *sent, share, *(_peak(step) for step in steps), *(_seconds(step) for step in steps)]


def _peak(step: FrameworkStep | None) -> Text:
    if step is None or step.fit is None:
        return Text("-")
    return Text(size_text(step.fit.needed_bytes), style="" if step.fit.fits else "red")


def _seconds(step: FrameworkStep | None) -> str:
    return "-" if step is None or step.cost is None else duration(step.cost.step.seconds)


def print_crossover(console: Console, rows: Iterable[Sent], tokens: int) -> None:
    """A row a number of GPUs, what each plan sends and how long it takes; then from where on 2D wins."""
    rows = list(rows)
    title = f"A block, forward and backward, {tokens:,} tokens on p GPUs of one tensor-parallel group:"
    console.print(f"\n[bold]{title} sent by a GPU, predicted time (closed formulas)[/]", highlight=False)
    table = plain_table()
    table.add_column("p", justify="right")
    for plan in (*ONE_D, *GRIDS):
        table.add_column(plan if plan in ONE_D else f"2D {plan}", justify="right", no_wrap=True)
    for gpus in sorted({row.gpus for row in rows}):
        own = {row.plan: row for row in rows if row.gpus == gpus}
        soonest = min(own.values(), key=lambda row: row.time.seconds)
        cells = [
            Text(f"{size_text(row.wire_bytes)}\n{duration(row.time.seconds)}", "bold green" if row is soonest else "")
            for row in (own[plan] for plan in (*ONE_D, *GRIDS))
        ]
        table.add_row(f"{gpus:,}", *cells)
    console.print(table, highlight=False)
    for text in sentences(rows):
        console.print(text, highlight=False)


def sentences(rows: Sequence[Sent]) -> list[str]:
    """Where 2D wins, and where a model cannot be split so far."""
    found = []
    for by_time, verb in ((False, "sends less"), (True, "takes less time")):
        gpus = first_win(rows, by_time)
        found.append(f"2D {verb} than 1D " + (f"from {gpus:,} GPUs on" if gpus else "at none of these numbers of GPUs"))
    for name, plan in (("1D", ONE_D[0]), ("2D", GRIDS[0])):
        refused = {row.gpus: row.refused for row in rows if row.plan == plan and row.refused}
        if refused:
            least = min(refused)
            found.append(
                f"{name} is not possible from {least:,} GPUs on ({refused[least]}); its figures are what it would send"
            )
    return found


def print_advice(console: Console, advice: Advice) -> None:
    """The three conditions with their figures, then the answer."""
    table = plain_table()
    table.add_column("condition", no_wrap=True)
    table.add_column("holds", no_wrap=True)
    table.add_column("figures")
    for one in advice.conditions:
        table.add_row(one.question, Text("yes" if one.holds else "no", "green" if one.holds else "yellow"), one.figures)
    console.print(table, highlight=False)
    console.print(f"[bold]Tensor parallelism here: {escape(advice.answer)}[/]", highlight=False)
