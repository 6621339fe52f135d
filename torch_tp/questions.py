"""Answers to questions about devices that are not there: `python -m torch_tp.worker RUN ORDERS --role questions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parity.contract import Collective
from parity.files_contract import EventLog
from parity.question_contract import Answer, ChainQuestion, PartitionQuestion, Question, read_questions
from torch_tp.grid.chain import chain
from torch_tp.mesh import fake_group
from torch_tp.partitioners import all_to_alls_of_nccl, partition
from torch_tp.trace import Call


def answer_all(run: Path, ids: Sequence[str], environment: Mapping[str, Any]) -> None:
    """Answer the questions of these ids, a line of the log each; needs no device, and joins no group."""
    questions, log = read_questions(run), EventLog(run / "torch" / "rank0.jsonl")
    log.append("hello", environment=dict(environment))
    for question_id in ids:
        log.append("start", case=question_id)
        log.append("result", results=[answer(questions[question_id], run).to_json()])


def answer(question: Question, run: Path) -> Answer:
    """What a device of the mesh dispatches, as rank 0 of a group that is not there."""
    with fake_group(question.num_devices):
        return answer_chain(question, run) if isinstance(question, ChainQuestion) else answer_partition(question, run)


def answer_chain(question: ChainQuestion, run: Path) -> Answer:
    """The collectives, and the temporaries."""
    traced = chain(question)
    return Answer(question.id, as_collectives(traced.calls), temporary_bytes=traced.temporary_bytes)


def answer_partition(question: PartitionQuestion, run: Path) -> Answer:
    """The collectives that a CUDA mesh issues, and those of a CPU mesh where they differ; or why there are none."""
    try:
        with all_to_alls_of_nccl():
            calls, output = partition(question)
        on_cpu, _ = partition(question)
    except (RuntimeError, ValueError, AssertionError) as error:  # by operator; NotImplementedError is a RuntimeError
        return Answer(question.id, refused=f"{type(error).__name__}: {error}".splitlines()[0])
    return Answer(
        question.id,
        as_collectives(calls),
        on_cpu=() if on_cpu == calls else as_collectives(on_cpu),
        output=output,
    )


def as_collectives(calls: Sequence[Call]) -> tuple[Collective, ...]:
    """As the contract has them."""
    return tuple(Collective(call.kind, call.axis, call.dtype, call.payload_bytes, pass_=call.pass_) for call in calls)
