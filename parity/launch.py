"""Run cases in a group of worker processes, one per rank, and survive their crashes and hangs.

A worker is `<python> -m torch_tp.worker RUN_DIR ORDERS_FILE --device cpu|cuda` (or jax_tp.worker) and learns its rank
from torchrun's environment variables. It reads the case ids from ORDERS_FILE and appends events to
`<framework>/rank<r>.jsonl`: "hello" once the group has met, then "start" and "result" for each case, or "error".
A process may drive several devices (JAX on the CPU); its "result" then holds one result per device.
When a rank fails, the whole group is ended, an error is recorded for the case in `<framework>/launcher.jsonl`, and a
new group runs the remaining cases. Only these errors are final: a rank's own "error" event may merely report that
another rank was lost.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from parity.files_contract import EventLog
from parity.group_logs import LAUNCHER_LOG, done_cases, log_names, mend_logs
from parity.interpreter import LaunchError
from parity.postmortem import Failure, describe_exit, explain_deaths, explain_hang, last_lines
from parity.rank_environment import free_port, rank_environment
from parity.supervise import Worker, end, finished_case

START_LIMIT_S = 120.0  # for a rank to say hello: a cold network file system can take long to import a framework
POLL_S = 0.05
SETTLE_S = 0.25  # after the first sign of a failure, to see which other ranks fail and in which order
ERROR_EXIT_S = 2.0  # for a rank that has reported an error to print its traceback and exit; JAX's can wait for minutes
EXIT_LIMIT_S = 10.0  # for a group to exit after its last result


@dataclass(frozen=True)
class Group:
    """What to start: the processes of one framework that drive `world` devices, or the single one that only traces."""

    framework: str
    role: str  # "ranks", or "trace", which has world 1
    world: int
    command: tuple[str, ...]  # up to and without RUN_DIR, e.g. ("python", "-m", "torch_tp.worker")
    device: str  # "cpu" or "cuda"
    case_limit_s: float  # how long a rank may be silent once it has said hello
    start_limit_s: float  # how long a rank may take to say hello
    local_devices: int = 1  # devices that each process drives
    quick: bool = False  # JAX: compile faster, to slower programs

    @property
    def processes(self) -> int:
        """How many ranks there are."""
        return self.world // self.local_devices


@dataclass(frozen=True)
class Progress:
    """An event of a case: "start" (of the first rank), "result" (of all ranks) or "error"; or a "warning"."""

    framework: str
    role: str
    event: str
    case: str | None  # None in a warning, which belongs to no case
    message: str = ""


def run_group(
    run_dir: Path,
    group: Group,
    case_ids: Sequence[str],
    on_event: Callable[[Progress], None],
    stop: threading.Event | None = None,
) -> None:
    """Run every case until all ranks have a result or it has an error; cases that are done already are skipped.

    If a group fails before its ranks have met, it is restarted once, provided that an earlier group met; otherwise
    all remaining cases become errors. No process outlives this call, whatever ends it: Ctrl-C, SIGTERM, SIGHUP or an
    exception from `on_event`. Setting `stop` ends a group that runs in another thread, as Ctrl-C would.
    Raises LaunchError when the command cannot be started, ContractError for a log that cannot be read.
    """
    run = _Run(run_dir.resolve(), group, on_event, stop or threading.Event())
    mend_logs(run.folder, group.role, group.processes)
    met_before, failed_starts = False, 0
    with signals_raise():
        while orders := run.undone(case_ids):
            failure = run.attempt(orders)
            if failure is None:
                continue
            if failure.joined:
                met_before, failed_starts = True, 0
                run.charge([failure.case], failure)
                continue
            failed_starts += 1
            if not met_before or failed_starts == 2:
                run.charge(orders, failure)


@dataclass
class _Run:
    run_dir: Path
    group: Group
    on_event: Callable[[Progress], None]
    stop: threading.Event

    @property
    def folder(self) -> Path:
        return self.run_dir / self.group.framework

    def undone(self, case_ids: Sequence[str]) -> list[str]:
        done = done_cases(self.run_dir, self.group.framework, self.group.role, self.group.processes)
        return [case for case in dict.fromkeys(case_ids) if case not in done]

    def charge(self, cases: Sequence[str], failure: Failure) -> None:
        for case in cases:
            self.record("error", case, failure.message, failure.stderr)

    def record(self, event: str, case: str | None, message: str, stderr: str) -> None:
        """Append a line to launcher.jsonl, which is on disk before `on_event` is called."""
        role = self.group.role
        with LAUNCHER_LOG:
            log = EventLog(self.folder / "launcher.jsonl")
            log.append(event, role=role, case=case, message=message, stderr=stderr)
        self.on_event(Progress(self.group.framework, role, event, case, message))

    def attempt(self, orders: Sequence[str]) -> Failure | None:
        """Start a group on these cases and follow it to its end; None if it finished them all."""
        workers: list[Worker] = []
        try:
            self.start(workers, orders)
            failure = self.follow(workers, orders)
            if failure is None:
                self.warn_of_exits(workers)
        finally:
            end(workers)
        mend_logs(self.folder, self.group.role, self.group.processes)
        return failure

    def start(self, workers: list[Worker], orders: Sequence[str]) -> None:
        """Append to the caller's list, so that it is complete even if this is interrupted."""
        group = self.group
        orders_file = self.folder / f"{group.role}-orders.json"
        orders_file.write_text(json.dumps({"case_ids": list(orders)}), encoding="utf-8")
        flags = ["--device", group.device] if group.role == "ranks" else ["--role", group.role]
        if group.local_devices > 1:
            flags += ["--local-devices", str(group.local_devices)]
        if group.quick:
            flags.append("--quick")
        command = (*group.command, str(self.run_dir), str(orders_file), *flags)
        port = free_port()
        for rank, name in enumerate(log_names(group.role, group.processes)):
            environment = rank_environment(rank, group.processes, port)
            log, err = self.folder / f"{name}.jsonl", self.folder / f"{name}.err"
            try:
                workers.append(Worker(rank, command, environment, orders, log, err))
            except OSError as error:
                raise LaunchError(f"cannot start {command[0]}: {error}") from error

    def follow(self, workers: Sequence[Worker], orders: Sequence[str]) -> Failure | None:
        announced: set[tuple[str, str]] = set()
        while True:
            if self.stop.is_set():
                raise KeyboardInterrupt
            self.poll(workers, announced)
            if any(worker.failed for worker in workers):
                self.settle(workers, announced)
                return explain_deaths(workers, orders)
            silent = [worker for worker in workers if worker.unfinished and self.is_overdue(worker)]
            if silent:
                return explain_hang(workers, orders, silent)
            if all(worker.exit or (not worker.unfinished and _silence_s(worker) > EXIT_LIMIT_S) for worker in workers):
                return None
            time.sleep(POLL_S)

    def settle(self, workers: Sequence[Worker], announced: set[tuple[str, str]]) -> None:
        begin_s = time.monotonic()
        while (waited_s := time.monotonic() - begin_s) < ERROR_EXIT_S:
            if waited_s > SETTLE_S and all(worker.exit for worker in workers if worker.error):
                return
            time.sleep(POLL_S)
            self.poll(workers, announced)

    def poll(self, workers: Sequence[Worker], announced: set[tuple[str, str]]) -> None:
        """Read the new events; report the first start of a case and its last result, each once."""
        news: list[tuple[str, str]] = []
        for worker in workers:
            for event in worker.poll():
                finished = finished_case(event)
                if event["event"] == "start":
                    news.append(("start", event["case"]))
                elif finished is not None and all(finished not in other.unfinished for other in workers):
                    news.append(("result", finished))
        for kind, case in news:
            if (kind, case) not in announced:
                announced.add((kind, case))
                self.on_event(Progress(self.group.framework, self.group.role, kind, case))

    def is_overdue(self, worker: Worker) -> bool:
        limit_s = self.group.case_limit_s if worker.joined else self.group.start_limit_s
        return _silence_s(worker) > limit_s

    def warn_of_exits(self, workers: Sequence[Worker]) -> None:
        """Report bad exits after the last result, for which no case is to blame."""
        for worker in workers:
            if worker.exit is None or worker.exit.code != 0:
                message = f"rank {worker.rank} {describe_exit(worker)} after its last result"
                self.record("warning", None, message, last_lines(worker))


def _silence_s(worker: Worker) -> float:
    return time.monotonic() - worker.last_event_s


@contextmanager
def signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does. Python allows this in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A signal that is ignored (nohup) or already handled is left alone.
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
