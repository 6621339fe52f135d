"""Should this model be trained with tensor parallelism here? The NCAR tutorial's three conditions, computed.

    1  the model, or what one GPU must hold of it, does not fit without
    2  the batch has fewer sequences than there are GPUs: data parallelism alone cannot use them all
    3  the tensor-parallel group lies on a fast link: its collectives take a small part of the step

Yes if it is needed (1 or 2) and 3 holds; the degree is that of the fastest step that fits.
Source: https://github.com/negin513/distributed-pytorch-hpc, 03_tensor_parallel_tp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from parity.cost.memory import RESERVED_BYTES
from parity.predict.request import Question
from parity.predict.sweep import ITEM_BYTES, Choice, tensor_link, verdicts

# Bytes a parameter of the training state: value, gradient and AdamW's two moments, all in the dtype of the step.
STATE_BYTES = {dtype: 4 * size for dtype, size in ITEM_BYTES.items()}
FAST_SHARE = 0.25  # of a step: what tensor-parallel collectives may take at most where the link counts as fast; judged


@dataclass(frozen=True)
class Condition:
    """One of the three: whether it speaks for tensor parallelism, and the figures."""

    question: str
    holds: bool
    figures: str


@dataclass(frozen=True)
class Advice:
    """The answer, the conditions that it rests on, and the degree to take; None where nothing fits."""

    answer: str
    degree: int | None
    conditions: tuple[Condition, ...]

    def to_json(self) -> dict[str, Any]:
        return {"answer": self.answer, "tp": self.degree, "conditions": [vars(one) for one in self.conditions]}


def advise(question: Question, choices: Sequence[Choice]) -> Advice:
    """From the sweep over tp degrees (`tp_choices`, with predictions) of the question's GPUs."""
    conditions = (_too_large(question, choices), _batch_small(question), _fast_link(choices))
    best = next(
        (choice for choice, verdict in zip(choices, verdicts(choices), strict=True) if verdict.word == "recommended"),
        None,
    )
    if best is None:
        return Advice(_nothing(choices), None, conditions)
    degree = best.question.size(("tp",))
    if degree == 1:
        return Advice("no: data parallelism alone fits, and a step is the shortest", 1, conditions)
    reasons = ("without it the model does not fit", "the batch is smaller than the number of GPUs")
    why = [text for condition, text in zip(conditions, reasons, strict=False) if condition.holds]
    return Advice(f"yes, tp={degree}: {' and '.join(why) or 'a step is the shortest'}", degree, conditions)


def _nothing(choices: Sequence[Choice]) -> str:
    if all(choice.refused for choice in choices):
        return "no way to lay it out: see the table"
    lacking = [-step.fit.spare_bytes for choice in choices for step in choice.steps if step.fit]
    if not lacking:
        return "unknown: neither framework could be traced"
    return f"it fits at no tp degree: the least that is lacking is {min(lacking) / 1e9:.1f} GB a GPU; take more GPUs"


def _too_large(question: Question, choices: Sequence[Choice]) -> Condition:
    parameters = question.preset.num_parameters()
    state = parameters * STATE_BYTES[question.dtype]
    usable = question.machine.gpu.memory_bytes - RESERVED_BYTES
    text = (
        f"state {state / 1e9:.0f} GB in all ({STATE_BYTES[question.dtype]} B a parameter), a GPU has {usable / 1e9:.1f}"
    )
    one = next((choice for choice in choices if choice.question.size(("tp",)) == 1), None)
    if one is None or one.refused or not any(step.fit for step in one.steps):
        reason = one.refused if one is not None and one.refused else "not traced"
        return Condition("too large without?", state > usable, f"{text}; tp=1: {reason}")
    needed = max(step.fit.needed_bytes for step in one.steps if step.fit)
    shards = question.num_gpus if "fsdp" in one.question.mesh else 1
    shared = f"sharded over {shards} GPUs" if shards > 1 else "on each GPU"
    return Condition(
        "too large without?", not one.fits, f"{text}; at tp=1, {shared}, a step needs {needed / 1e9:.1f} GB"
    )


def _batch_small(question: Question) -> Condition:
    gpus, batch = question.num_gpus, question.batch
    text = f"{batch} sequences a step, {gpus} GPUs"
    if batch < gpus:
        text += f": data parallelism can use {batch} of them, tp={-(-gpus // batch)} the rest"
    return Condition("batch smaller than the GPUs?", batch < gpus, text)


def _fast_link(choices: Sequence[Choice]) -> Condition:
    laid_out = [choice for choice in choices if choice.steps and choice.question.size(("tp",)) > 1]
    shares = [(choice, choice.share_of_tensor_axis()) for choice in laid_out]
    text = "; ".join(f"{choice.name} {share:.0%} of a step, {tensor_link(choice.question)}" for choice, share in shares)
    is_fast = any(share <= FAST_SHARE for _, share in shares)
    return Condition("fast link inside a group?", is_fast, text or "no tp degree could be laid out")
