"""One worker process a rank: start it, read what it writes, end it with all that it started.

Each rank leads a session of its own, so that one `killpg` reaches its children too. Its standard input is a pipe
whose other end only this process holds: when the harness dies, even by SIGKILL, the pipe closes and the worker exits.
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
STDERR_BYTES = 1 << 16  # of the end of a rank's output are read after a failure


@dataclass(frozen=True)
class Exit:
    """How and when a process ended."""

    code: int  # minus the signal number where a signal ended it
    at_s: float  # time.monotonic()


class Worker:
    """One rank of a group, with what it has said so far.

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
        self.joined = False  # it said hello: the whole group had met
        self.current: str | None = None  # the case that it started and did not finish
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
        """It ended, or said that it would, with cases left."""
        return bool(self.unfinished) and (self.exit is not None or self.error is not None)

    def poll(self) -> list[dict[str, Any]]:
        """The events since the last call, noted in the attributes. Raises ContractError for a line that is no JSON."""
        ended = self._ended  # taken before the log is read: all that the process wrote before it ended counts
        events = self._new_events()
        for event in events:
            self._note(event)
        self.exit = ended
        return events

    def wait(self, timeout_s: float) -> None:
        """Until the process has ended or the time is over."""
        self._watcher.join(max(0.0, timeout_s))

    def signal(self, number: int) -> None:
        """Send a signal to the rank and to all that it started. Allowed until `reap`, even after it has ended."""
        os.killpg(self._process.pid, number)

    def forbid_core_dump(self) -> None:
        """Where core dumps are on, one of a framework's processes can fill a disk."""
        with suppress(ProcessLookupError):  # it may have ended since the last poll; a zombie has no limits
            resource.prlimit(self._process.pid, resource.RLIMIT_CORE, (0, 0))

    def reap(self) -> None:
        """Wait for the end and free the process id."""
        self._watcher.join()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def output(self) -> str:
        """The end of what this process, not an earlier one, wrote to stdout and stderr."""
        with self._err.open("rb") as file:
            file.seek(max(self._err_offset, self._err.stat().st_size - STDERR_BYTES))
            return file.read().decode("utf-8", errors="replace")

    def _watch(self) -> None:
        # WNOWAIT leaves a zombie: the process id cannot be given to another process before `reap`. A thread that
        # blocks here sees the order in which ranks end more finely than polling does.
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
    """The case that an event finishes on its rank, if it does."""
    match event:
        case {"event": "result", "results": [{"case": str(case)}, *_]} | {
            "event": "trace",
            "trace": {"case": str(case)},
        }:
            return case
    return None


def dump_stacks(workers: Sequence[Worker]) -> None:
    """End hung ranks so that faulthandler (PYTHONFAULTHANDLER=1) first prints where each of their threads stands."""
    for worker in workers:
        worker.forbid_core_dump()
        worker.signal(signal.SIGABRT)
    deadline_s = time.monotonic() + DUMP_GRACE_S
    for worker in workers:
        worker.wait(deadline_s - time.monotonic())


def end(workers: Sequence[Worker]) -> None:
    """Leave no process of the group: SIGTERM, a short grace, SIGKILL. A second Ctrl-C in the grace only shortens it."""
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
