"""Run cases in a group of worker processes, a rank each, and outlive their crashes and hangs.

A worker is `<python> -m torch_tp.worker RUN_DIR ORDERS_FILE --device cpu|cuda` (or jax_tp.worker), told its place by
torchrun's environment variables. It reads the case ids from ORDERS_FILE and appends events to
`<framework>/rank<r>.jsonl`: "hello" once the group has met, then "start" and "result" for each case, or "error".
A process may drive several devices (JAX on the CPU): then its "result" holds one result for each.
When a rank fails, the whole group is ended, the case is charged with an error in `<framework>/launcher.jsonl`, and a
new group does the rest. Only those errors are final; a rank's own "error" event may be the echo of a lost peer.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from parity.files_contract import EventLog, read_events
from parity.interpreter import LaunchError, worker_environment
from parity.postmortem import Failure, describe_exit, explain_deaths, explain_hang, last_lines
from parity.supervise import Worker, end, finished_case

POLL_S = 0.05
SETTLE_S = 0.25  # after the first sign of a failure, to see who else failed, and in which order
ERROR_EXIT_S = 2.0  # for a rank that has reported an error to print its traceback and exit; JAX's can wait for minutes
EXIT_LIMIT_S = 10.0  # for a group to exit after its last result
LOGS = threading.Lock()  # two groups of one framework write to one launcher.jsonl


@dataclass(frozen=True)
class Group:
    """What to start: the processes of one framework that drive `world` devices, or the one that only traces."""

    framework: str
    role: str  # "ranks", "trace" or "steps"; the last two have world 1
    world: int
    command: tuple[str, ...]  # up to and without RUN_DIR, e.g. ("python", "-m", "torch_tp.worker")
    device: str  # "cpu" or "cuda"
    case_limit_s: float  # how long a rank may say nothing once it has said hello
    start_limit_s: float  # how long a rank may take to say hello
    local_devices: int = 1  # that each process drives
    quick: bool = False  # JAX: compiled in less time, for slower programs

    @property
    def processes(self) -> int:
        """How many ranks there are."""
        return self.world // self.local_devices


@dataclass(frozen=True)
class Progress:
    """What has become of a case: "start" (by the first rank), "result" (of all ranks), "error"; or a "warning"."""

    framework: str
    role: str
    event: str
    case: str | None  # None in a warning, which is about no case
    message: str = ""


def run_group(
    run_dir: Path,
    group: Group,
    case_ids: Sequence[str],
    on_event: Callable[[Progress], None],
    stop: threading.Event | None = None,
) -> None:
    """Bring every case to results of all ranks or to an error; those that are done already are left out.

    A group that fails before it has met is started once more if an earlier one met; else, and the second time, all
    remaining cases become errors. Whatever is raised here, by Ctrl-C, SIGTERM, SIGHUP or `on_event`, no process is
    left. `stop` ends a group in a thread of its own as Ctrl-C does. Raises LaunchError when the command cannot be
    started, ContractError for a log that cannot be read.
    """
    run = _Run(run_dir.resolve(), group, on_event, stop or threading.Event())
    run.mend_logs()
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


def done_cases(run_dir: Path, framework: str, role: str, processes: int) -> set[str]:
    """Cases that need no (further) run, from the files alone: every rank has a result, or the launcher gave them up."""
    folder = run_dir / framework
    finished = [
        {case for event in read_events(folder / f"{name}.jsonl") if (case := finished_case(event)) is not None}
        for name in _log_names(role, processes)
    ]
    errors: set[str] = set()
    for event in read_events(folder / "launcher.jsonl"):
        if event["event"] == "error" and event["role"] == role:
            errors.add(event["case"])
        elif event["event"] == "retry":
            errors.clear()
    return set.intersection(*finished) | errors


def retry_errors(run_dir: Path, framework: str) -> None:
    """Let the cases that were given up be run again: their cause may be gone."""
    EventLog(run_dir / framework / "launcher.jsonl").append("retry")


@dataclass
class _Run:
    run_dir: Path
    group: Group
    on_event: Callable[[Progress], None]
    stop: threading.Event

    @property
    def folder(self) -> Path:
        return self.run_dir / self.group.framework

    def mend_logs(self) -> None:
        """Cut off lines that a crash left without an end: the next line appended would make them unreadable."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (*_log_names(self.group.role, self.group.processes), "launcher"):
            path = self.folder / f"{name}.jsonl"
            with LOGS:
                content = path.read_bytes() if path.exists() else b""
                if content and not content.endswith(b"\n"):
                    os.truncate(path, content.rfind(b"\n") + 1)

    def undone(self, case_ids: Sequence[str]) -> list[str]:
        done = done_cases(self.run_dir, self.group.framework, self.group.role, self.group.processes)
        return [case for case in dict.fromkeys(case_ids) if case not in done]

    def charge(self, cases: Sequence[str], failure: Failure) -> None:
        for case in cases:
            self.record("error", case, failure.message, failure.stderr)

    def record(self, event: str, case: str | None, message: str, stderr: str) -> None:
        """One line in launcher.jsonl, on disk before anybody hears of it."""
        role = self.group.role
        with LOGS:
            log = EventLog(self.folder / "launcher.jsonl")
            log.append(event, role=role, case=case, message=message, stderr=stderr)
        self.on_event(Progress(self.group.framework, role, event, case, message))

    def attempt(self, orders: Sequence[str]) -> Failure | None:
        """Start a group on these cases and follow it to its end; None when it did them all."""
        workers: list[Worker] = []
        try:
            self.start(workers, orders)
            failure = self.follow(workers, orders)
            if failure is None:
                self.warn_of_exits(workers)
        finally:
            end(workers)
        self.mend_logs()
        return failure

    def start(self, workers: list[Worker], orders: Sequence[str]) -> None:
        """Append to the caller's list, which is then right whenever this is interrupted."""
        group = self.group
        orders_file = self.folder / f"{group.role}-orders.json"
        orders_file.write_text(json.dumps({"case_ids": list(orders)}), encoding="utf-8")
        flags = ["--device", group.device] if group.role == "ranks" else ["--role", group.role]
        if group.local_devices > 1:
            flags += ["--local-devices", str(group.local_devices)]
        if group.quick:
            flags.append("--quick")
        command = (*group.command, str(self.run_dir), str(orders_file), *flags)
        port = _free_port()
        for rank, name in enumerate(_log_names(group.role, group.processes)):
            environment = _rank_environment(rank, group.processes, port)
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
        """Read what is new and pass on, once each, the first start of a case and its last result."""
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
        """All results are there, so no case is charged; but a bad exit is not passed over in silence."""
        for worker in workers:
            if worker.exit is None or worker.exit.code != 0:
                message = f"rank {worker.rank} {describe_exit(worker)} after its last result"
                self.record("warning", None, message, last_lines(worker))


def _log_names(role: str, processes: int) -> list[str]:
    return [f"rank{rank}" for rank in range(processes)] if role == "ranks" else [role]


def _silence_s(worker: Worker) -> float:
    return time.monotonic() - worker.last_event_s


def _rank_environment(rank: int, world: int, port: int) -> dict[str, str]:
    """torchrun's variables, and threads such that the ranks share the cores, unless the user has decided otherwise."""
    threads = max(1, len(os.sched_getaffinity(0)) // world)
    defaults = {"OMP_NUM_THREADS": str(threads), "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
    place = {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return {**defaults, **worker_environment(), **place}


def _free_port() -> int:
    """Below the usual ephemeral ports: rank 0 binds it only after seconds of imports, and until then the kernel could
    give an ephemeral port to anybody.
    """
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


@contextmanager
def signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does. Python allows that in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # One that is ignored (nohup) or handled already stays as it is.
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
