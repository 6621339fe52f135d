"""One worker process per rank: start it, read its events, and end it with all processes that it started.

Each rank leads a session of its own, so that `killpg` reaches its children too. Its standard input is a pipe whose
other end only this process holds: when the harness dies, even by SIGKILL, the pipe closes and the worker exits.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.contract import ContractError

TERM_GRACE_S = 1.0  # between SIGTERM and SIGKILL: CUDA and NCCL release shared memory in their handlers
DUMP_GRACE_S = 1.0  # for a hung rank to print where it stands
STDERR_BYTES = 1 << 16  # how much of the end of a rank's output is read after a failure


@dataclass(frozen=True)
class Exit:
    """How and when a process ended."""

    code: int  # minus the signal number if a signal ended it
    at_s: float  # time.monotonic()


class Worker:
    """One rank of a group and the events that it has reported.

    `log` is the event log that the rank appends to, `err` takes its stdout and stderr; both may hold lines of earlier
    processes, which are not read. Raises OSError when `command` cannot be started.
    """

    def __init__(
        self,
        rank: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        orders: Iterable[str],
        log: Path,
        err: Path,
    ) -> None:
        self.rank = rank
        self.joined = False  # it has said hello, so the whole group has met
        self.current: str | None = None  # the case that it is running
        self.started: set[str] = set()
        self.unfinished = set(orders)
        self.error: dict[str, Any] | None = None  # its own "error" event
        self.error_s = float("inf")
        self.exit: Exit | None = None
        self._log, self._log_offset = log, log.stat().st_size if log.exists() else 0
        self._err = err
        with err.open("ab") as output:
            self._err_offset = output.tell()
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.last_event_s = time.monotonic()
        self._ended: Exit | None = None
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    @property
    def failed(self) -> bool:
        """Whether it has ended, or reported an error, with cases left."""
        return bool(self.unfinished) and (self.exit is not None or self.error is not None)

    def poll(self) -> list[dict[str, Any]]:
        """The events since the last call; updates the attributes. Raises ContractError for a line that is not JSON."""
        ended = self._ended  # read before the log, so that all that the process wrote before it ended is seen
        events = self._new_events()
        for event in events:
            self._note(event)
        self.exit = ended
        return events

    def wait(self, timeout_s: float) -> None:
        """Wait until the process has ended, or for timeout_s."""
        self._watcher.join(max(0.0, timeout_s))

    def signal(self, number: int) -> None:
        """Send a signal to the rank and its children. Allowed until `reap`, even after the rank has ended."""
        os.killpg(self._process.pid, number)

    def forbid_core_dump(self) -> None:
        """Disable core dumps, as that of a framework's process can fill a disk."""
        with suppress(ProcessLookupError):  # it may have ended since the last poll; a zombie has no limits
            resource.prlimit(self._process.pid, resource.RLIMIT_CORE, (0, 0))

    def reap(self) -> None:
        """Wait for the process to end and release its id."""
        self._watcher.join()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def output(self) -> str:
        """The end of the stdout and stderr of this process, without that of earlier ones."""
        with self._err.open("rb") as file:
            file.seek(max(self._err_offset, self._err.stat().st_size - STDERR_BYTES))
            return file.read().decode("utf-8", errors="replace")

    def _watch(self) -> None:
        # WNOWAIT leaves a zombie, so that the process id cannot be reused before `reap`. A thread blocked here sees the
        # order in which ranks end with better resolution than polling.
        status = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        assert status is not None
        code = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
        self._ended = Exit(code, time.monotonic())

    def _new_events(self) -> list[dict[str, Any]]:
        if not self._log.exists() or self._log.stat().st_size == self._log_offset:
            return []
        with self._log.open("rb") as file:
            file.seek(self._log_offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._log_offset += len(whole) + len(newline)
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise ContractError(f"{self._log}: a line is not JSON ({error})") from error

    def _note(self, event: dict[str, Any]) -> None:
        self.last_event_s = time.monotonic()
        match event:
            case {"event": "hello"}:
                self.joined = True
            case {"event": "start", "case": str(case)}:
                self.current = case
                self.started.add(case)
            case {"event": "error"}:
                self.error, self.error_s = event, self.last_event_s
        finished = finished_case(event)
        if finished is not None:
            self.current = None
            self.unfinished.discard(finished)


def finished_case(event: Mapping[str, Any]) -> str | None:
    """The case that an event finishes on its rank, or None."""
    match event:
        case {"event": "result", "results": [{"case": str(case)}, *_]} | {
            "event": "trace",
            "trace": {"case": str(case)},
        }:
            return case
    return None


def dump_stacks(workers: Sequence[Worker]) -> None:
    """Abort hung ranks, upon which faulthandler (PYTHONFAULTHANDLER=1) prints the stack of each of their threads."""
    for worker in workers:
        worker.forbid_core_dump()
        worker.signal(signal.SIGABRT)
    deadline_s = time.monotonic() + DUMP_GRACE_S
    for worker in workers:
        worker.wait(deadline_s - time.monotonic())


def end(workers: Sequence[Worker]) -> None:
    """End all processes of the group: SIGTERM, a grace period, SIGKILL. Ctrl-C meanwhile only cuts the grace short."""
    try:
        for worker in workers:
            worker.signal(signal.SIGTERM)
        deadline_s = time.monotonic() + TERM_GRACE_S
        for worker in workers:
            worker.wait(deadline_s - time.monotonic())
    finally:
        for worker in workers:
            worker.signal(signal.SIGKILL)
        for worker in workers:
            worker.reap()
