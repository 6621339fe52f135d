"""Why a group of workers failed, in one line: which rank failed first, how, and its last words."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from parity.supervise import Worker, dump_stacks

STDERR_LINES = 30
WORDS_LIMIT = 300

ABSL_FATAL = re.compile(r"F\d{4} [\d:.]+ +\d+ (.*)")  # "F1122 21:41:52.927422   18668 client.h:80] Terminating ..."

# Messages of gloo, NCCL, torch's TCPStore, XLA and Python when another rank is gone.
LOST_PEER = re.compile(
    r"closed by peer|connection ?(was likely closed|reset|refused|aborted)|broken ?pipe|failed to recv, got 0 bytes"
    r"|ncclRemoteError|remote process exit|heartbeat|coordination ?service|distributed service|UNAVAILABLE|timed out",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Failure:
    """Why a group ended before its last case."""

    case: str  # the one that is charged with it
    message: str
    stderr: str  # the last lines of the ranks that the message names first
    joined: bool  # the rank at fault had said hello: the group itself had started


def explain_deaths(workers: Sequence[Worker], orders: Sequence[str]) -> Failure:
    """Name the rank at fault, then those that only lost their peer. At least one rank must have failed."""
    failed = sorted((worker for worker in workers if _ended_badly(worker)), key=_innocence)
    first = failed[0]
    alike = [worker for worker in failed if worker is first or _same_error(worker, first)]
    after = [worker for worker in failed if worker not in alike]
    message = f"{name_ranks(alike)} {_end_of(first)}"
    if after:
        message += f"; then {name_ranks(after)} failed"
    if not first.joined:
        message = f"the group did not start: {message}"
    return Failure(_charged_case(first, workers, orders), message, last_lines(first), first.joined)


def explain_hang(workers: Sequence[Worker], orders: Sequence[str], silent: Sequence[Worker]) -> Failure:
    """Explain which ranks wait for which, when `silent` ranks have reported nothing for too long. Aborts them."""
    first = min(silent, key=lambda worker: worker.last_event_s)
    seconds = f"{time.monotonic() - first.last_event_s:.0f} s"
    case = _charged_case(first, workers, orders)
    if first.joined:
        hung = [worker for worker in workers if case in worker.unfinished]
        message = f"hung for {seconds}: {_standing(case, workers)}"
    else:
        hung = [worker for worker in workers if not worker.joined]
        message = f"the group did not start: no hello from {name_ranks(hung)} after {seconds}"
    dump_stacks([worker for worker in hung if worker.exit is None])
    places = [f"rank {worker.rank} at {place}" for worker in hung if (place := last_place(worker.output()))]
    stderr = "\n".join(f"rank {worker.rank}:\n{last_lines(worker)}" for worker in hung)
    return Failure(case, "; ".join([message, *places]), stderr, first.joined)


def describe_exit(worker: Worker) -> str:
    """How a rank ended, without its output."""
    if worker.exit is None:
        return "did not exit"
    if worker.exit.code >= 0:
        return f"exited with code {worker.exit.code}"
    number = -worker.exit.code
    hint = " (often for want of memory)" if number == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(number).name}{hint}"


def name_ranks(workers: Sequence[Worker]) -> str:
    ranks = sorted(worker.rank for worker in workers)
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def last_words(text: str) -> str:
    """The most informative line of a process's output about its end.

    XLA's fatal message, upon which the process aborts; else the last exception or fatal error; else the last line.
    """
    words, in_traceback = "", False
    lines = _lines(text)
    for line in lines:
        if check := ABSL_FATAL.match(line):
            return check[1][:WORDS_LIMIT]
        if line.startswith("Traceback (most recent call last)"):
            in_traceback = True
        elif in_traceback and not line.startswith(" "):
            words, in_traceback = line, False
        elif line.startswith("Fatal Python error"):
            place = last_place(text)
            words = f"{line} at {place}" if place else line
    return (words or "".join(lines[-1:])).strip()[:WORDS_LIMIT]


def last_place(text: str) -> str:
    """The innermost frame of the thread that got a fatal signal, from faulthandler's dump: "mlp.py:88 in forward"."""
    frames = re.findall(r'^Current thread .*\n  File "(?:.*/)?(.+)", line (\d+) in (\S+)', text, re.MULTILINE)
    return "{}:{} in {}".format(*frames[-1]) if frames else ""


def _ended_badly(worker: Worker) -> bool:
    return worker.failed or (worker.exit is not None and worker.exit.code != 0)


def _innocence(worker: Worker) -> tuple[int, float]:
    """Sort key that puts the rank at fault before the ranks that failed because of it.

    Time alone does not suffice: a process closes its sockets before it has ended, so its peers may end earlier.
    """
    code = worker.exit.code if worker.exit else None
    if code is not None and code < 0 and code != -signal.SIGABRT:
        kind = 0  # killed from outside, or a memory fault: never the consequence of a lost peer
    elif LOST_PEER.search(_words_of(worker)):
        kind = 3
    elif code == -signal.SIGABRT:
        kind = 2  # the C++ runtimes abort on errors of their own and on a lost peer
    else:
        kind = 1
    return kind, min(worker.error_s, worker.exit.at_s if worker.exit else float("inf"))


def _words_of(worker: Worker) -> str:
    words = worker.error["message"] if worker.error else last_words(worker.output())
    return " ".join(words.split())[:WORDS_LIMIT]


def _same_error(worker: Worker, other: Worker) -> bool:
    return worker.error is not None and other.error is not None and worker.error["message"] == other.error["message"]


def _end_of(worker: Worker) -> str:
    early = " before its last case" if worker.exit is not None and worker.exit.code == 0 else ""
    how = "failed" if worker.exit is None else f"{describe_exit(worker)}{early}"
    unforeseen = worker.exit is not None and worker.exit.code == -signal.SIGKILL  # it could not report why
    words = "" if unforeseen else _words_of(worker)
    return f"{how}: {words}" if words else how


def _charged_case(first: Worker, workers: Sequence[Worker], orders: Sequence[str]) -> str:
    """The case that the rank at fault was in; between two cases, the next one, so that a restart always advances."""
    undone = [case for case in orders if any(case in worker.unfinished for worker in workers)]
    reported = first.error.get("case") if first.error else None
    return next((case for case in (reported, first.current) if case in undone), undone[0])


def _standing(case: str, workers: Sequence[Worker]) -> str:
    groups = {
        "finished by": [worker for worker in workers if case not in worker.unfinished],
        "started but not finished by": [w for w in workers if case in w.started and case in w.unfinished],
        "never started by": [w for w in workers if case not in w.started and case in w.unfinished],
    }
    return ", ".join(f"{what} {name_ranks(who)}" for what, who in groups.items() if who)


def _lines(text: str) -> list[str]:
    """Without blank lines, and without the "[rank0]: " that torch.distributed puts before a traceback."""
    bare = (re.sub(r"^\[rank\d+\]: ?", "", line.rstrip()) for line in text.splitlines())
    return [line for line in bare if line]


def last_lines(worker: Worker) -> str:
    """The end of the rank's output, for the user."""
    return "\n".join(worker.output().splitlines()[-STDERR_LINES:])
