"""Answers to questions: `python -m jax_tp.worker RUN ORDERS`, RUN/questions.json."""

from __future__ import annotations

from jax.errors import JaxRuntimeError

from jax_tp.grid.bench import bench
from jax_tp.grid.chain import chain
from jax_tp.measure import measure
from jax_tp.partitioners import partition, why_types_refuse
from jax_tp.steps import trace_step
from jax_tp.trace import why_no_a100_compiler
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
from parity.step_contract import StepOrder, StepTrace


def answer(question: Question, rank: int, device: str) -> Record:
    """Of questions of time what this rank says; else what XLA compiles for A100s, or why it cannot."""
    match question:
        case StepOrder():
            skipped = why_no_a100_compiler()
            return StepTrace("jax", question.id, skipped=skipped) if skipped else trace_step(question)
        case PairsQuestion():
            return bench(question.chain, rank, question.num_pairs)
        case CollectiveQuestion():
            return Measured(question.id, rank, tuple(measure(question.kind, question.payload_bytes, device)))
    if skipped := why_no_a100_compiler():
        return Answer(question.id, skipped=skipped)
    return answer_chain(question) if isinstance(question, ChainQuestion) else answer_partition(question)


def answer_chain(question: ChainQuestion) -> Answer:
    """The program, and the temporaries."""
    traced = chain(question)
    return Answer(question.id, hlo=traced.compiled.as_text(), temporary_bytes=traced.temporary_bytes)


def answer_partition(question: PartitionQuestion) -> Answer:
    """The program; or why there is none."""
    refused_by_types = why_types_refuse(question)
    try:
        compiled, output = partition(question)
    except (ValueError, JaxRuntimeError) as error:  # by operation
        refused = f"{type(error).__name__}: {error}".splitlines()[0]
        return Answer(question.id, refused=refused, refused_by_types=refused_by_types)
    return Answer(question.id, hlo=compiled.as_text(), output=output, refused_by_types=refused_by_types)
