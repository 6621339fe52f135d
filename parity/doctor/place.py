"""What the doctor looks at, behind one small interface, so that a test can show it a node that is not there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parity.interpreter import worker_environment

COMMAND_LIMIT_S = 120.0  # a cold network file system can take long to import a framework

LEVELS = ("ok", "note", "warning", "problem")  # a problem: something of this project will not work


@dataclass(frozen=True)
class Finding:
    """One fact: how bad it is, what it is, what to do about it, and who says so."""

    level: str
    topic: str
    what: str
    do: str = ""
    source: str = ""


def check(is_bad: bool, level: str, topic: str, what: str, do: str, source: str = "") -> Finding:
    """What was looked at: of this level, with what to do, if it is bad, else "ok"."""
    return Finding(level, topic, what, do, source) if is_bad else Finding("ok", topic, what, source=source)


@dataclass(frozen=True)
class Place:
    """A machine as a process sees it."""

    env: Mapping[str, str]
    run: Callable[[Sequence[str]], str | None]  # what a command prints; None if it is not there, fails or hangs
    bind: Callable[[int], str]  # why this port of loopback cannot be bound (0: any), or ""
    cores: int
    shm_bytes: int
    root: Path = Path("/")

    def read(self, path: str) -> str:
        """The text of a file, "" if there is none."""
        try:
            return (self.root / path.lstrip("/")).read_text()
        except OSError:
            return ""

    def find(self, directory: str, pattern: str) -> list[Path]:
        """The files of a directory that match, in order."""
        return sorted((self.root / directory.lstrip("/")).glob(pattern))


def this_place() -> Place:
    """The machine that this runs on."""
    shm = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0
    return Place(os.environ, _run, _bind, len(os.sched_getaffinity(0)), shm)


def _run(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(
            list(command),
            env=worker_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout


def _bind(port: int) -> str:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError as error:
            return error.strerror or str(error)
    return ""
