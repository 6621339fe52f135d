"""Put questions about devices that are not there to both frameworks, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from parity.calibrate.local import RanksFailedError
from parity.contract import ContractError
from parity.files_contract import read_events
from parity.hlo import read_collectives
from parity.launch import Group, Progress, run_group
from parity.question_contract import Answer, Question

START_LIMIT_S = 120.0
QUESTION_LIMIT_S = 120.0


def ask(
    directory: Path,
    questions: Sequence[Question],
    commands: Mapping[str, tuple[str, ...]],
    on_event: Callable[[Progress], None],
) -> dict[str, dict[str, Answer]]:
    """framework -> question's id -> its answer, with the collectives filled in; logs and programs in `directory`.

    `commands` starts each framework's worker. Raises RanksFailedError, and what `run_group` raises.
    """
    (directory / "questions.json").write_text(json.dumps([asdict(question) for question in questions]))
    ids = [question.id for question in questions]

    def put(framework: str) -> None:
        def listen(event: Progress) -> None:
            if event.event == "error":
                raise RanksFailedError(f"{framework}, asked {event.case}: {event.message}")
            on_event(event)

        command = (*commands[framework], "--role", "questions")
        group = Group(framework, "ranks", 1, command, "cpu", QUESTION_LIMIT_S, START_LIMIT_S)
        run_group(directory, group, ids, listen)

    with ThreadPoolExecutor(len(commands)) as pool:
        for done in [pool.submit(put, framework) for framework in commands]:
            done.result()
    return {framework: read_answers(directory, framework, questions) for framework in commands}


def read_answers(directory: Path, framework: str, questions: Sequence[Question]) -> dict[str, Answer]:
    """The answers in a framework's log, by question; JAX's collectives are read from the compiled programs."""
    meshes = {question.id: question.mesh for question in questions}
    answers = {}
    for event in read_events(directory / framework / "rank0.jsonl"):
        if event["event"] == "result":
            (data,) = event["results"]
            answer = Answer.from_json(data)
            if answer.hlo is not None:
                text = (directory / framework / "hlo" / answer.hlo).read_text()
                ledger = read_collectives(text, meshes[answer.case])
                if ledger.gaps:
                    raise ContractError(f"{framework}, asked {answer.case}: {ledger.gaps[0]}")
                answer = replace(answer, collectives=ledger.collectives)
            answers[answer.case] = answer
    return answers
