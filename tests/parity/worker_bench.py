"""Groups of fake workers for tests: start them, read what came of them, find those that are still alive."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from parity.files_contract import read_events
from parity.group_logs import done_cases
from parity.launch import Group, Progress, run_group

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
COMMAND = (sys.executable, "-S", str(FAKE_WORKER))
NEVER_S = 600.0  # no test may pass by waiting for this limit
SOON_S = 1.5


def processes_marked(mark: Path) -> list[int]:
    """All live processes, children of children too, that inherited FAKE_MARK from the test."""
    needle = f"FAKE_MARK={mark}".encode()
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if needle in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
        except (OSError, ValueError):
            continue
    return [pid for pid in found if pid != os.getpid()]


def wait_until_gone(mark: Path) -> None:
    """For processes that nobody waits for; the test's own time limit ends this."""
    while processes_marked(mark):
        threading.Event().wait(0.02)


@dataclass
class Bench:
    """A run directory, and what the launcher said about it."""

    run_dir: Path
    group: Group
    progress: list[Progress] = field(default_factory=list)

    def run(self, *cases: str, **changes: object) -> None:
        run_group(self.run_dir, replace(self.group, **changes), cases, self.progress.append)

    def cases(self, event: str) -> list[str | None]:
        return [progress.case for progress in self.progress if progress.event == event]

    def message(self, case: str | None, event: str = "error") -> str:
        (message,) = [entry.message for entry in self.progress if (entry.event, entry.case) == (event, case)]
        return message

    def log(self, name: str) -> list[dict]:
        return read_events(self.run_dir / "fake" / f"{name}.jsonl")

    def stderr(self, case: str) -> str:
        (stderr,) = [event["stderr"] for event in self.log("launcher") if event["case"] == case]
        return stderr

    def starts(self, rank: int = 0) -> int:
        path = self.run_dir / f"starts{rank}"
        return path.stat().st_size if path.exists() else 0

    def done(self, **changes: object) -> set[str]:
        group = replace(self.group, **changes)
        return done_cases(self.run_dir, group.framework, group.role, group.processes)
