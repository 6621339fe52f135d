"""Where the time of a run went: what the frameworks take to start and compile, and what is ours."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.files_contract import read_events


@dataclass(frozen=True)
class Spent:
    """Seconds of wall time of the last `parity run` in a directory."""

    start_s: float  # from starting the processes until the group has met: interpreters, imports, joining
    first_steps_s: float  # trace, compile and run of each case's first step
    a100_s: float  # tracing and compiling for A100s, after the ranks were done
    total_s: float

    @property
    def ours_s(self) -> float:
        """All else: inputs, timing repeats, writing results, supervising."""
        return self.total_s - self.start_s - self.first_steps_s - self.a100_s


def time_spent(directory: Path) -> Spent:
    """Read from the stamps in the logs; restarted groups count as starts."""
    marks = read_events(directory / "groups.jsonl")
    first = max(index for index, mark in enumerate(marks) if mark["event"] == "begin")
    marks = marks[first:]
    start_s = first_steps_s = a100_s = 0.0
    for group, following in itertools.pairwise(marks):
        if group["event"] == "ranks done":
            a100_s = following["time_s"] - group["time_s"]
        if group["event"] != "group":
            continue
        inside = (group["time_s"], following["time_s"])
        log = read_events(directory / group["framework"] / "rank0.jsonl")
        events = [event for event in log if inside[0] < event["time_s"] < inside[1]]
        start_s += sum(_starts(events, group["time_s"]))
        first_steps_s += sum(e["results"][0]["timing"]["cold_s"] or 0.0 for e in events if e["event"] == "result")
    return Spent(start_s, first_steps_s, a100_s, marks[-1]["time_s"] - marks[0]["time_s"])


def _starts(events: list[dict[str, Any]], begin_s: float) -> list[float]:
    """Seconds until each hello, from the group's begin or the last event before."""
    before = [begin_s, *(event["time_s"] for event in events)]
    return [
        event["time_s"] - earlier for event, earlier in zip(events, before, strict=False) if event["event"] == "hello"
    ]
