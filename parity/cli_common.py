"""What the commands share: where they print, and how bad input ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from parity.ask import RanksFailedError
from parity.calibrate import CalibrationError
from parity.cases.family import CaseError
from parity.contract import ContractError
from parity.cost import CostError
from parity.integer_check import NotExactError
from parity.interpreter import LaunchError
from parity.launch import Progress as CaseProgress
from parity.predict import RequestError
from parity.processes import ProcessDiedError

# Interpreters by their paths would be cut off in --help.
TorchPython = Annotated[str, typer.Option(help="Interpreter that has torch.", show_default="this one")]
JaxPython = Annotated[str, typer.Option(help="Interpreter that has jax and flax.", show_default="this one")]

DEVICES = ("cpu", "cuda")

console = Console()
error_console = Console(stderr=True)


class RefusedError(Exception):
    """Bad input: one line, exit code 2."""


BAD_INPUT = (
    RefusedError,
    CaseError,
    ContractError,
    LaunchError,
    NotExactError,
    CostError,
    CalibrationError,
    RequestError,
)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input ends with one line and exit code 2, ranks or processes that failed with 3, Ctrl-C with 130."""
    try:
        yield
    except BAD_INPUT as error:
        print_error(error)
        raise typer.Exit(2) from None
    except (RanksFailedError, ProcessDiedError) as error:
        print_error(error)
        raise typer.Exit(3) from None
    except KeyboardInterrupt:
        error_console.print("interrupted")
        raise typer.Exit(130) from None


def parse_sizes(text: str, option: str) -> dict[str, int]:
    """`tp=4` or `D=24,F=36` -> a dict."""
    sizes = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if not name.isidentifier() or not size.isdecimal() or int(size) < 1:
            raise RefusedError(f"{option} {text!r}: expected NAME=SIZE[,NAME=SIZE...] with sizes of at least 1")
        if name in sizes:
            raise RefusedError(f"{option} {text!r}: has {name!r} twice")
        sizes[name] = int(size)
    return sizes


def sizes_over(defaults: Mapping[str, int], text: str | None) -> dict[str, int]:
    """The defaults with the sizes of `--dims` in their place."""
    given = parse_sizes(text, "--dims") if text else {}
    if unknown := [name for name in given if name not in defaults]:
        raise RefusedError(f"--dims {unknown[0]}: there are {', '.join(defaults)}")
    return {**defaults, **given}


def check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Refuses a value that is none of the choices."""
    if value not in choices:
        raise RefusedError(f"{option} {value!r}: there are {', '.join(choices)}")


def print_json(content: dict[str, Any]) -> None:
    """On stdout as it is, whatever the width of the terminal."""
    typer.echo(json.dumps(content, indent=1))


def print_error(error: Exception) -> None:
    """One line on stderr."""
    error_console.print("[bold red]error:[/]", escape(str(error)), soft_wrap=True, highlight=False)


@contextmanager
def counting_bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar over so many things of one kind; yields the function to call, with whatever, after each."""
    with _bars() as progress:
        task = progress.add_task(description, total=total, case="")
        yield lambda *_: progress.advance(task)


@contextmanager
def progress_bar(totals: Mapping[tuple[str, str], int]) -> Iterator[Callable[[CaseProgress], None]]:
    """A bar for each (framework, role) of worker groups over its cases; yields the function to tell of progress.

    Where no terminal is, a line for each that is done.
    """
    with _bars() as progress:
        tasks = {
            (framework, role): progress.add_task(
                f"{framework} for A100s" if role == "trace" and (framework, "ranks") in totals else framework,
                start=False,
                total=total,
                case="",
            )
            for (framework, role), total in totals.items()
            if total
        }
        started = time.monotonic()

        def on_event(event: CaseProgress) -> None:
            if event.event == "warning":
                warning = f"[yellow]{event.framework}[/] {escape(event.message)}"
                progress.console.print(warning, soft_wrap=True, highlight=False)
                return
            task = progress.tasks[tasks[event.framework, event.role]]
            if not task.started:
                progress.start_task(task.id)
            if event.event == "start":
                progress.update(task.id, case=event.case)
                return
            progress.update(task.id, advance=1, case="")
            if progress.disable and task.completed == task.total:
                line = f"{task.description}: {task.total:.0f} done, {time.monotonic() - started:.0f} s after the start"
                progress.console.print(line, highlight=False)

        yield on_event


class _Clock(ProgressColumn):
    """How long a bar has been going, and about how long it will."""

    def render(self, task: Task) -> Text:
        if not task.started:
            return Text("waits", style="dim")
        seconds = task.finished_time if task.finished else task.elapsed
        gone, left = timedelta(seconds=int(seconds or 0)), task.time_remaining
        if task.finished or left is None:
            return Text(f"{gone}")
        return Text(f"{gone}, {timedelta(seconds=int(left))} left")


def _bars() -> Progress:
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    case = TextColumn("[dim]{task.fields[case]}[/]", table_column=rest)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=12), MofNCompleteColumn(), _Clock(), case)
    hidden = not error_console.is_terminal  # where it could not be wiped again, it would leave an empty line
    return Progress(
        *columns, console=error_console, transient=True, disable=hidden, expand=True, speed_estimate_period=3600
    )
