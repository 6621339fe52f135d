"""A predicted step as tables for the terminal: what is sent, held, and how long it takes, both frameworks abreast."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from parity.cost import Group
from parity.cost.memory import RESERVED_BYTES
from parity.cost.step import link_of
from parity.predict import FrameworkStep, LedgerRow, Prediction, Question
from parity.predict.prediction import NOT_COUNTED
from parity.report.quantities import size_text
from parity.report.step_time import PASSES, print_rates, time_table
from parity.report.tables import figures, plain_table
from parity.report.terminal import duration
from parity.sizes import sizes_text

BARS_FROM_WIDTH = 160  # columns; narrower terminals show no bars
PARTS = ("parameters", "gradients", "optimizer", "activations", "temporaries")  # of memory
UNBOUNDED = 1000  # columns: more than any table here takes
SHORT = {"float32": "f32", "float64": "f64"}  # bfloat16 goes without saying


def print_prediction(console: Console, prediction: Prediction) -> None:
    """Heading, where the axes lie, collectives, memory, time, and what to know of it."""
    question = prediction.question
    console.print(heading(question))
    console.print()
    console.print(axes_table(question), highlight=False)
    print_skipped(console, [prediction])
    steps = {name: step for name, step in prediction.steps.items() if step.cost is not None}
    if not steps:
        return
    print_abreast(
        console,
        "Collectives of one GPU; times predicted, as if nothing ran beside them (~ other work may)",
        ledger_table,
        steps,
    )
    for name, step in steps.items():
        if step.reconciliation is not None:
            style = "yellow" if step.reconciliation.unexplained_bytes else "green"
            console.print(f"[{style}]{name}[/] {escape(step.reconciliation.summary())}", highlight=False)
    console.print()
    if any(step.fit for step in steps.values()):
        memory = size_text(question.machine.gpu.memory_bytes)
        kept = f"{size_text(RESERVED_BYTES)} of them kept for CUDA and NCCL"
        print_table(console, f"Memory of one GPU at the step's peak: of {memory}, {kept}", memory_table(steps))
        held = [step.trace.memory for step in steps.values() if step.trace.memory is not None]
        if any(one.total < sum(getattr(one, part) for part in PARTS) for one in held):
            console.print("[dim]gradients: as at the end of the step; at the peak some are yet to come[/]\n")
    with_bars = console.width >= BARS_FROM_WIDTH
    print_abreast(console, "Time of a step, predicted", partial(time_table, with_bars=with_bars), steps)
    print_rates(console, question, steps)
    print_notes(console, steps)


def print_skipped(console: Console, predictions: Iterable[Prediction]) -> None:
    """Why there is nothing of a framework, each reason once."""
    named = [(name, step.skipped) for one in predictions for name, step in one.steps.items() if step.skipped]
    for name, reason in dict.fromkeys(named):
        console.print(f"[yellow]no {name}:[/] {escape(reason)}", soft_wrap=True, highlight=False)


def print_abreast(
    console: Console, title: str, table: Callable[[dict[str, FrameworkStep]], Table], steps: dict[str, FrameworkStep]
) -> None:
    """Both frameworks in one table, or where that is too wide one after the other."""
    both = table(steps)
    fits = console.measure(both, options=console.options.update(width=UNBOUNDED)).maximum <= console.width
    for one in [both] if fits else [table({name: step}) for name, step in steps.items()]:
        print_table(console, title, one)


def print_table(console: Console, title: str, table: Table) -> None:
    """Under its title, which may be wider than it."""
    console.print(f"[bold]{escape(title)}[/]", highlight=False)
    console.print(table, highlight=False)


def heading(question: Question) -> Text:
    """What is predicted of what."""
    machine, preset = question.machine, question.preset
    nodes = -(-question.num_gpus // machine.gpus_per_node)
    text = Text(f"{preset.name}", style="bold")
    text.append(f", {preset.num_parameters() / 1e9:.3g} B parameters, {question.dtype}, plan {question.plan}, ", "")
    text.append(f"style {question.style}{', blocks checkpointed' if question.is_checkpointed else ''}\n")
    text.append(f"{machine.name}", style="bold")
    text.append(f", {question.num_gpus:,} x {machine.gpu.name} on {nodes:,} node{'s' if nodes > 1 else ''}, mesh ")
    text.append(f"{sizes_text(question.mesh)}; a step of {question.batch:,} x {question.seq:,} tokens")
    return text


def axes_table(question: Question) -> Table:
    """Where the groups of each axis lie."""
    table = plain_table("axis", "GPUs", "link")
    table.add_column("a group of it lies")
    for axis in question.mesh:
        group = Group.of_axis(question.mesh, axis, question.machine.gpus_per_node)
        table.add_row(axis, f"{group.gpus}", link_of(group), place(group))
    return table


def place(group: Group) -> str:
    """In words."""
    if group.gpus == 1:
        return "a GPU by itself"
    if group.nodes == 1:
        return "inside a node"
    beside = f", beside {group.sharing - 1} others on the same NICs" if group.sharing > 1 else ""
    return f"{group.gpus_per_node} GPU{'s' if group.gpus_per_node > 1 else ''} a node on {group.nodes} nodes{beside}"


def ledger_table(steps: dict[str, FrameworkStep]) -> Table:
    """By pass, kind, axis and dtype: bytes on the wire, calls and time, each framework's."""
    table = plain_table("pass", "kind", "axis", "link")
    for framework in steps:
        figures(table, f"{framework}\nsent", "\ncalls", "\ntime")
    ledgers = {name: {row.key: row for row in step.ledger()} for name, step in steps.items()}
    keys = dict.fromkeys(key for ledger in ledgers.values() for key in ledger)
    for index, pass_ in enumerate(PASSES):
        own = [key for key in keys if key[0] == pass_]
        if index and own:
            table.add_section()
        for key in own:
            rows = [ledger.get(key) for ledger in ledgers.values()]
            link = next(row.link for row in rows if row is not None)
            kind = key[1] if key[3] == "bfloat16" else f"{key[1]}, {SHORT.get(key[3], key[3])}"
            first = pass_ if key == own[0] else ""
            table.add_row(first, kind, key[2], link, *(cell for row in rows for cell in _ledger_cells(row)))
    table.add_section()
    sums = []
    for ledger in ledgers.values():
        entries = list(ledger.values())
        sent, calls = sum(row.wire_bytes for row in entries), sum(row.count for row in entries)
        sums += [size_text(sent), f"{calls:,}", duration(sum(row.time.seconds for row in entries))]
    table.add_row("all", "", "", "", *sums, style="bold")
    return table


def _ledger_cells(row: LedgerRow | None) -> tuple[str, str, str]:
    if row is None:
        return "-", "-", "-"
    return size_text(row.wire_bytes), f"{row.count:,}", ("~" if row.is_async else "") + duration(row.time.seconds)


def memory_table(steps: dict[str, FrameworkStep]) -> Table:
    """By what it holds, at the peak; and whether that fits."""
    table = plain_table("")
    figures(table, *steps)
    held = [step.trace.memory for step in steps.values()]
    for part in PARTS:
        table.add_row(part, *("-" if one is None else size_text(getattr(one, part)) for one in held))
    table.add_section()
    table.add_row("peak", *("-" if one is None else size_text(one.total) for one in held), style="bold")
    table.add_row("fits", *(fit_text(step) for step in steps.values()))
    table.add_row("[dim]source[/]", *("" if one is None else f"[dim]{escape(one.source)}[/]" for one in held))
    return table


def fit_text(step: FrameworkStep) -> Text:
    """Yes or no, and by how much."""
    if step.fit is None:
        return Text("-")
    if step.fit.fits:
        return Text(f"yes, {size_text(step.fit.spare_bytes)} spare", style="green")
    return Text(f"no, {size_text(-step.fit.spare_bytes)} too much", style="red")


def print_notes(console: Console, steps: dict[str, FrameworkStep]) -> None:
    """What is modelled how, and what is not counted; of notes on single instructions only how many there are."""
    said: dict[str, list[str]] = {}
    for name, step in steps.items():
        single = sum(note.startswith("%") for note in step.trace.notes)
        more = [f"{single} notes on single instructions, which --json has"] if single else []
        for note in [*(note for note in step.trace.notes if not note.startswith("%")), *more]:
            said.setdefault(note, []).append(name)
    for note, names in said.items():
        console.print(f"[dim]{', '.join(names)}: {escape(note)}[/]", highlight=False)
    traced = ", ".join(f"{name} {step.trace.seconds:.1f} s" for name, step in steps.items())
    console.print(f"[dim]not counted: {NOT_COUNTED}\ntraced without a GPU: {traced}[/]", highlight=False)
