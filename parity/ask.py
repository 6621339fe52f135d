"""Put questions to the frameworks: JSON to workers in interpreters of their own, typed answers back.

What comes of a worker that dies, hangs or lacks a package is one line.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

from parity.contract import ContractError
from parity.files_contract import read_events
from parity.hlo import read_collectives
from parity.launch import START_LIMIT_S, Group, Progress, run_group, signals_raise
from parity.question_contract import LIMITS_S, Answer, ChainQuestion, PartitionQuestion, Question, write_questions
from parity.record import Record

OnEvent = Callable[[Progress], None]


class RanksFailedError(Exception):
    """A worker died or hung; the message is one line for the user."""


A = TypeVar("A", bound=Record)
Failed = Callable[[str, str, str], A]  # framework, question's id, why in one line -> an answer


@dataclass(frozen=True)
class GroupAnswers(Generic[A]):
    """What the workers of one group say."""

    environment: Mapping[str, Any]  # versions, device, backend; empty where no worker got as far as to say hello
    by_id: Mapping[str, list[A]]  # question's id -> the answers of all ranks


def ask(
    answer: type[A],
    questions: Sequence[Question],
    commands: Mapping[str, Sequence[str]],
    on_event: OnEvent,
    failed: Failed[A] | None = None,
) -> dict[str, dict[str, A]]:
    """framework -> question's id -> its answer. One process of each framework, side by side; needs no device.

    commands: framework -> how to start its worker, e.g. ("python", "-m", "torch_tp.worker").
    failed: what is taken for the answer that a worker died of or hung in; without it the first failure ends all.
    Raises RanksFailedError, and what `run_group` raises.
    """
    stop = threading.Event()

    def put(framework: str) -> dict[str, A]:
        group = Group(framework, "trace", 1, tuple(commands[framework]), "cpu", limit_of(questions), START_LIMIT_S)
        return {id_: one for id_, (one,) in _put(answer, questions, group, on_event, failed, stop).by_id.items()}

    with signals_raise(), ThreadPoolExecutor(len(commands)) as pool:
        asked = {pool.submit(put, framework): framework for framework in commands}
        try:
            found = {asked[done]: done.result() for done in as_completed(asked)}
        finally:
            stop.set()
    return {framework: found[framework] for framework in commands}


def ask_collectives(
    questions: Sequence[PartitionQuestion | ChainQuestion], commands: Mapping[str, Sequence[str]], on_event: OnEvent
) -> dict[str, dict[str, Answer]]:
    """`ask`, with JAX's collectives read from the compiled programs. Raises ContractError where they cannot be."""
    found = ask(Answer, questions, commands, on_event)
    for framework, answers in found.items():
        for one in questions:
            if (hlo := answers[one.id].hlo) is not None:
                ledger = read_collectives(hlo, one.mesh)
                if ledger.gaps:
                    raise ContractError(f"{framework}, asked {one.id}: {ledger.gaps[0]}")
                answers[one.id] = replace(answers[one.id], collectives=ledger.collectives, hlo=None)
    return found


def ask_ranks(
    answer: type[A],
    questions: Sequence[Question],
    framework: str,
    command: Sequence[str],
    num_ranks: int,
    device: str,
    on_event: OnEvent,
) -> GroupAnswers[A]:
    """The answers of so many ranks of one framework, on the devices of this machine.

    Raises RanksFailedError, and what `run_group` raises.
    """
    local = num_ranks if framework == "jax" and device == "cpu" else 1  # as `parity run` does it
    group = Group(framework, "ranks", num_ranks, tuple(command), device, limit_of(questions), START_LIMIT_S, local)
    return _put(answer, questions, group, on_event)


def limit_of(questions: Sequence[Question]) -> float:
    """How long a worker that is asked these may be silent, in seconds: as long as the slowest of them may take."""
    return max(LIMITS_S[type(one)] for one in questions)


def _put(
    answer: type[A],
    questions: Sequence[Question],
    group: Group,
    on_event: OnEvent,
    failed: Failed[A] | None = None,
    stop: threading.Event | None = None,
) -> GroupAnswers[A]:
    """The answers of one group, which lives as long as this takes."""
    by_id: dict[str, list[A]] = {one.id: [] for one in questions}

    def listen(event: Progress) -> None:
        if event.event == "error":
            if failed is None:
                raise RanksFailedError(f"{group.framework}, asked {event.case}: {event.message}")
            by_id[str(event.case)] = [failed(group.framework, str(event.case), event.message)]
        on_event(event)

    with TemporaryDirectory(prefix="parity-") as folder:
        write_questions(Path(folder), questions)
        run_group(Path(folder), group, [one.id for one in questions], listen, stop)
        logs = sorted((Path(folder) / group.framework).glob("*.jsonl"))
        events = [event for log in logs for event in read_events(log)]
    environment: Mapping[str, Any] = next((event["environment"] for event in events if event["event"] == "hello"), {})
    for event in events:
        for data in event.get("results", []):
            by_id[data["case"]].append(answer.from_json(data))
    return GroupAnswers(environment, by_id)
