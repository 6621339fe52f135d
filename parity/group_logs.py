"""The logs of a group of workers: one per rank, and launcher.jsonl for the cases that were given up.

Which cases are done follows from these files alone, so that an interrupted run can be resumed.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from parity.files_contract import EventLog, read_events
from parity.supervise import finished_case

LAUNCHER_LOG = threading.Lock()  # two groups of one framework append to the same launcher.jsonl


def log_names(role: str, processes: int) -> list[str]:
    """The names of a group's logs, without the suffix: one per rank, or one for a process that only traces."""
    return [f"rank{rank}" for rank in range(processes)] if role == "ranks" else [role]


def done_cases(run_dir: Path, framework: str, role: str, processes: int) -> set[str]:
    """Cases that need not run (again): every rank has a result, or the launcher gave them up."""
    folder = run_dir / framework
    finished = [
        {case for event in read_events(folder / f"{name}.jsonl") if (case := finished_case(event)) is not None}
        for name in log_names(role, processes)
    ]
    errors: set[str] = set()
    for event in read_events(folder / "launcher.jsonl"):
        if event["event"] == "error" and event["role"] == role:
            errors.add(event["case"])
        elif event["event"] == "retry":
            errors.clear()
    return set.intersection(*finished) | errors


def retry_errors(run_dir: Path, framework: str) -> None:
    """Allow the cases that were given up to run again: what failed then may work now."""
    EventLog(run_dir / framework / "launcher.jsonl").append("retry")


def mend_logs(folder: Path, role: str, processes: int) -> None:
    """Truncate each log after its last newline: a crash may have left half a line, and the next line would join it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*log_names(role, processes), "launcher"):
        path = folder / f"{name}.jsonl"
        with LAUNCHER_LOG:
            content = path.read_bytes() if path.exists() else b""
            if content and not content.endswith(b"\n"):
                os.truncate(path, content.rfind(b"\n") + 1)
