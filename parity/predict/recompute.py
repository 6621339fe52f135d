"""Activation checkpointing, put on a traced step: each block keeps its input only, and runs forward again in backward.

    activations    L * [own tokens, D] + the larger of one block's and the head's          instead of all L blocks'
    backward       + the forward pass's operations and tensor-parallel collectives, but for those of the head

The frameworks did not trace this: it is worked out from the step that they traced, without checkpointing.
"""

from __future__ import annotations

from dataclasses import replace

from parity.predict.request import DATA_AXES, TENSOR_AXES, Question
from parity.step_contract import Memory, Operation, StepTrace

ITEM_BYTES = {"bfloat16": 2, "float32": 4}
NOTE = "activation checkpointing of every block is worked out from the step without it, not traced"


def checkpointed(question: Question, trace: StepTrace) -> StepTrace:
    """The step with every block checkpointed."""
    if trace.skipped:
        return trace
    blocks = question.preset.dims["L"]
    forward = [op for op in trace.operations if op.pass_ == "forward" and not _is_head(question, op)]
    again = [replace(op, pass_="backward") for op in forward]
    sent = [
        replace(entry, pass_="backward", count=entry.count // blocks * blocks, is_async=False)
        for entry in trace.collectives
        if entry.pass_ == "forward" and entry.count >= blocks and set(entry.axis.split("+")) <= set(TENSOR_AXES)
    ]
    return replace(
        trace,
        operations=(*trace.operations, *again),
        collectives=(*trace.collectives, *sent),
        memory=None if trace.memory is None else _memory(question, trace.memory),
        notes=(*trace.notes, NOTE),
    )


def _tokens(question: Question) -> int:
    return question.tokens // question.size(DATA_AXES)


def _head_width(question: Question) -> int:
    """Columns of the logits that a GPU has; the rows of the table are padded as `parity.steps` does it."""
    ways = question.num_gpus
    return -(-question.preset.dims.get("V", 0) // ways) * ways // question.size(TENSOR_AXES)


def _is_head(question: Question, op: Operation) -> bool:
    return op.kind == "matmul" and _head_width(question) in (op.m, op.n)


def _memory(question: Question, memory: Memory) -> Memory:
    item = ITEM_BYTES[question.dtype]
    # The logits, and in float32 what the loss makes of them.
    head = min(memory.activations, _tokens(question) * _head_width(question) * (item + 4))
    block = (memory.activations - head) // question.preset.dims["L"]
    kept_tokens = _tokens(question) // (question.size(TENSOR_AXES) if question.plan == "sequence_parallel" else 1)
    kept = question.preset.dims["L"] * kept_tokens * question.preset.dims["D"] * item
    activations = min(memory.activations, kept + max(block, head))
    return replace(memory, activations=activations, total=memory.total - memory.activations + activations)
