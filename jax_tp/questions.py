"""Answers to questions about devices that are not there: `python -m jax_tp.worker RUN ORDERS --role questions`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.errors import JaxRuntimeError
from jax.stages import Compiled

from jax_tp.grid.chain import chain
from jax_tp.partitioners import partition, why_types_refuse
from jax_tp.trace import why_no_a100_compiler
from parity.files_contract import EventLog
from parity.question_contract import Answer, ChainQuestion, PartitionQuestion, Question, read_questions
from parity.worker_contract import file_name


def answer_all(run: Path, ids: Sequence[str], environment: Mapping[str, Any]) -> None:
    """Answer the questions of these ids, a line of the log each; needs no device, and joins no group."""
    questions, log = read_questions(run), EventLog(run / "jax" / "rank0.jsonl")
    log.append("hello", environment=dict(environment))
    for question_id in ids:
        log.append("start", case=question_id)
        log.append("result", results=[answer(questions[question_id], run).to_json()])


def answer(question: Question, run: Path) -> Answer:
    """The program that XLA compiles for A100s, or why there is no compiler for them."""
    if skipped := no_compiler():
        return Answer(question.id, skipped=skipped)
    return answer_chain(question, run) if isinstance(question, ChainQuestion) else answer_partition(question, run)


def answer_chain(question: ChainQuestion, run: Path) -> Answer:
    """The program, and the temporaries."""
    traced = chain(question)
    hlo = write_program(traced.compiled, question, run)
    return Answer(question.id, hlo=hlo, temporary_bytes=traced.temporary_bytes)


def answer_partition(question: PartitionQuestion, run: Path) -> Answer:
    """The program; or why there is none."""
    refused_by_types = why_types_refuse(question)
    try:
        compiled, output = partition(question)
    except (ValueError, JaxRuntimeError) as error:  # by operation
        refused = f"{type(error).__name__}: {error}".splitlines()[0]
        return Answer(question.id, refused=refused, refused_by_types=refused_by_types)
    hlo = write_program(compiled, question, run)
    return Answer(question.id, hlo=hlo, output=output, refused_by_types=refused_by_types)


no_compiler = functools.cache(why_no_a100_compiler)


def write_program(compiled: Compiled, question: Question, run: Path) -> str:
    """Write the scheduled HLO; returns the name of the file."""
    file = file_name(question.id, "a100.hlo")
    path = run / "jax" / "hlo" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(compiled.as_text())
    return file
