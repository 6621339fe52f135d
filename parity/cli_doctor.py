"""`parity doctor`: what will work here and what will not, before a run is tried."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from parity.cli_common import JaxPython, TorchPython, console, print_json
from parity.contract import FRAMEWORKS
from parity.doctor import LEVELS, Finding, examine, this_place
from parity.interpreter import LaunchError, find_interpreter

STYLES = dict(zip(LEVELS, ("green", "cyan", "yellow", "bold red"), strict=True))


def doctor(
    torch_python: TorchPython = sys.executable,
    jax_python: JaxPython = sys.executable,
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of lines.")] = False,
) -> None:
    """Say what will work on this machine and what will not: a laptop, a node of a cluster, a rank under a launcher.

    Versions, CUDA wheels, driver, GPUs and links, float32 precision, launcher, ports, proxies, NCCL on Slingshot.
    It joins no group and changes nothing.

    Exit codes: 0 no problem, 1 a problem.
    """
    findings, pythons = [], {}
    for framework, python in zip(FRAMEWORKS, (torch_python, jax_python), strict=True):
        try:
            pythons[framework] = find_interpreter(python, framework)
        except LaunchError as error:
            what, _, do = str(error).partition(": ")
            findings.append(Finding("problem", "interpreter", what, do))
    findings += examine(this_place(), pythons)
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings], "summary": counts})
    else:
        for finding in findings:
            print_finding(finding)
        console.print(", ".join(f"{number} {level}" for level, number in counts.items()), style="bold")
    raise typer.Exit(1 if counts["problem"] else 0)


def print_finding(finding: Finding) -> None:
    """A line of what; below it what to do, and who says so."""
    level = f"[{STYLES[finding.level]}]{finding.level:8}[/]"
    console.print(f"{level}{finding.topic}: {escape(finding.what)}", soft_wrap=True, highlight=False)
    for text in (finding.do, finding.source if finding.level != "ok" else ""):
        if text:
            console.print(f"{'':8}[dim]{escape(text)}[/]", soft_wrap=True, highlight=False)
