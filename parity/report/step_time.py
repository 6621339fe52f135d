"""The time of a step as a table: its parts, each framework's, and what they come to."""

from __future__ import annotations

from itertools import chain

from rich.console import Console
from rich.table import Table

from parity.cost import Estimate
from parity.cost.step import HOST_BOUND_BELOW_S, WORK
from parity.predict import FrameworkStep, Question
from parity.predict.prediction import utilization
from parity.report.quantities import digits
from parity.report.tables import figures, plain_table
from parity.report.terminal import duration

BAR_WIDTH = 24
PASSES = ("forward", "backward", "optimizer", "step")


def time_table(steps: dict[str, FrameworkStep], with_bars: bool) -> Table:
    """The parts that add up to the step, each with its 90 % interval; hidden time beside them."""
    table = plain_table("pass", "part")
    unit, factor = _unit(max(step.cost.step.seconds for step in steps.values() if step.cost is not None))
    for name in steps:
        figures(table, f"{name}\n{unit}", "90 %\ninterval", "\nhidden")
        if with_bars:
            table.add_column("", no_wrap=True, width=BAR_WIDTH)
    costs = [step.cost for step in steps.values() if step.cost is not None]
    parts = [{(part.pass_, part.name): part for part in cost.parts} for cost in costs]
    keys = dict.fromkeys(key for own in parts for key in own)
    longest = max(part.time.seconds for own in parts for part in own.values())

    def cells(time: Estimate, hidden_s: float, share: float) -> list[str]:
        best, low, high, hidden = (digits(one / factor) for one in (time.seconds, time.low_s, time.high_s, hidden_s))
        shown = [best, f"{low} to {high}", hidden if hidden_s > 0 else ""]
        return [*shown, bar(share)] if with_bars else shown

    nothing = ["-", "", "", ""] if with_bars else ["-", "", ""]
    for pass_ in PASSES:
        names = sorted((name for own_pass, name in keys if own_pass == pass_), key=_part_order)
        for name in names:
            found = [own.get((pass_, name)) for own in parts]
            row = [
                nothing if part is None else cells(part.time, part.hidden_s, part.time.seconds / longest)
                for part in found
            ]
            table.add_row(pass_ if name == names[0] else "", name, *chain(*row))
        if names:
            table.add_section()
    table.add_row("all", "", *chain(*(cells(cost.step, 0.0, 0.0) for cost in costs)), style="bold")
    return table


def _part_order(name: str) -> tuple[int, str]:
    """Work, collectives by axis, what overlap costs."""
    return (0 if name in WORK.values() else 1 if "collectives" in name else 2), name


def print_rates(console: Console, question: Question, steps: dict[str, FrameworkStep]) -> None:
    """What a step's time comes to."""
    for name, step in steps.items():
        if step.cost is not None:
            rate = question.tokens / step.cost.step.seconds / question.num_gpus
            console.print(
                f"{name}: {duration(step.cost.step.seconds)} a step, {rate:,.0f} tokens/s a GPU, "
                f"{utilization(question, step.cost):.0%} of the GPU's peak in {question.dtype}",
                highlight=False,
            )
            if step.cost.mean_kernel_s < HOST_BOUND_BELOW_S:
                mean = duration(step.cost.mean_kernel_s)
                warning = f"{name}: kernels take {mean} on average; a host that launches them one by one may be slower"
                console.print(f"[yellow]{warning}[/]", highlight=False)


def bar(share: float) -> str:
    """A bar of at most BAR_WIDTH columns, to an eighth of one."""
    whole, eighths = divmod(round(share * BAR_WIDTH * 8), 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()


def _unit(seconds: float) -> tuple[str, float]:
    """For a whole table: so that its largest figure has a few digits before the point."""
    return ("s", 1.0) if seconds >= 100 else ("ms", 1e-3) if seconds >= 0.01 else ("us", 1e-6)
