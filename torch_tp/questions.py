"""Answers to questions: `python -m torch_tp.worker RUN ORDERS`, RUN/questions.json."""

from __future__ import annotations

from collections.abc import Sequence

from parity.contract import Collective
from parity.question_contract import (
    Answer,
    ChainQuestion,
    CollectiveQuestion,
    Measured,
    PairsQuestion,
    PartitionQuestion,
    Question,
)
from parity.record import Record
from parity.step_contract import StepOrder
from torch_tp.grid.bench import bench
from torch_tp.grid.chain import chain
from torch_tp.measure import measure
from torch_tp.mesh import fake_group
from torch_tp.partitioners import all_to_alls_of_nccl, partition
from torch_tp.steps import trace_step
from torch_tp.trace import Call


def answer(question: Question, rank: int, device: str) -> Record:
    """Of questions of time what this rank says; else what rank 0 says, in a group that is not there."""
    match question:
        case StepOrder():
            return trace_step(question)
        case PairsQuestion():
            return bench(question.chain, rank, device, question.num_pairs)
        case CollectiveQuestion():
            return Measured(question.id, rank, tuple(measure(question.kind, question.payload_bytes, device)))
    with fake_group(question.num_devices):
        return answer_chain(question) if isinstance(question, ChainQuestion) else answer_partition(question)


def answer_chain(question: ChainQuestion) -> Answer:
    """The collectives, and the temporaries."""
    traced = chain(question)
    return Answer(question.id, as_collectives(traced.calls), temporary_bytes=traced.temporary_bytes)


def answer_partition(question: PartitionQuestion) -> Answer:
    """The collectives that a CUDA mesh issues, and those of a CPU mesh where they differ; or why there are none."""
    try:
        with all_to_alls_of_nccl():
            calls, output = partition(question)
        on_cpu, _ = partition(question)
    except (RuntimeError, ValueError, AssertionError) as error:
        # DTensor refuses a layout with whichever of these the operator raises (NotImplementedError is a RuntimeError);
        # a refusal is an answer, and it is shown with its text.
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
