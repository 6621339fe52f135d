"""Runs of real workers, compared."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.compare import compare
from parity.contract import Case
from parity.run import Command, Manner, execute, start_run
from parity.rundir import read_run

GOOD = {name: (sys.executable, "-m", f"{name}_tp.worker") for name in ("torch", "jax")}


@dataclass(frozen=True)
class Finished:
    """A run's directory and its comparison."""

    directory: Path
    comparison: dict[str, Any]

    def case(self, case_id: str) -> dict[str, Any]:
        (entry,) = (case for case in self.comparison["cases"] if case["id"] == case_id)
        return entry


def run_cases(directory: Path, cases: Sequence[Case], commands: Mapping[str, Command] = GOOD) -> Finished:
    """Run the cases with these worker commands and compare."""
    start_run(directory, cases, {"device": "cpu", "seed": 0, "arguments": [], "timings": False})
    execute(directory, cases, commands, Manner(), lambda event: None)
    return Finished(directory, compare(read_run(directory)))
