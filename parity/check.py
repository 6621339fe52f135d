"""Findings about one case: are the arrays, the layouts and the collectives what they should be?

Pure functions of what the workers wrote and of what the case expects; nothing here runs a framework.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from parity.cases.family import Family
from parity.cases.notation import index_of, shape_of
from parity.contract import Case, Collective, Result, Shard
from parity.rewrites import WIDENED, explain, payloads

Verdict = Literal["pass", "fail", "skip", "error"]


@dataclass
class Finding:
    """The outcome of one check: a verdict and, unless it is a plain pass, the reasons, one line each."""

    verdict: Verdict = "pass"
    reasons: list[str] = field(default_factory=list)

    def fail(self, reason: str) -> None:
        """Record a finding against the case."""
        self.verdict = "fail"
        self.reasons.append(reason)

    def skip(self, reason: str) -> None:
        """Record that the case could not be judged, and why."""
        self.verdict = "skip" if self.verdict == "pass" else self.verdict
        self.reasons.append(reason)


SCALARS = ("loss", "norm")


def base_name(tensor: str) -> str:
    """The tensor whose layout this one must have: a gradient or moment is laid out like its parameter or input.

    "up.w.grad" and, after a step of training, "step3.up.w.m" -> "up.w".
    """
    step, _, rest = tensor.partition(".")
    if step.startswith("step") and rest:
        return rest.removesuffix(".m").removesuffix(".v")
    return tensor.removesuffix(".grad")


def layout_of(family: Family, tensor: str) -> str:
    """The expected layout of a tensor, in the notation of the case data."""
    name = base_name(tensor)
    return "" if name in SCALARS else family.tensors[name]


def check_layouts(case: Case, family: Family, results: Sequence[Result], tensors: Iterable[str]) -> Finding:
    """Check that every device holds exactly its part of every tensor under the plan; an accidental replica fails."""
    finding = Finding()
    for name in tensors:
        layout = layout_of(family, name)
        shape = shape_of(layout, case.dims)
        for result in results:
            shard = result.shards.get(name)
            if shard is None:
                finding.fail(f"{name}: rank {result.rank} reports no such tensor")
                break
            problem = _compare_shard(shard, shape, index_of(layout, case.dims, case.mesh, result.coordinates))
            if problem:
                finding.fail(f"{name} [{layout}]: rank {result.rank} {problem}")
                break  # the other ranks would say the same
    return finding


def _compare_shard(shard: Shard, shape: tuple[int, ...], index: tuple[tuple[int, int], ...]) -> str:
    if shard.partial:
        return f"holds a partial sum over {'+'.join(shard.partial)}"
    if shard.global_shape != shape:
        return f"has global shape {shard.global_shape}, expected {shape}"
    if shard.index != index:
        return f"holds {_ranges(shard.index)}, expected {_ranges(index)}"
    return ""


def _ranges(index: tuple[tuple[int, int], ...]) -> str:
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in index) + "]"


def assemble(shards: Sequence[tuple[Shard, np.ndarray]]) -> tuple[np.ndarray, str]:
    """The global tensor assembled from all ranks' parts, and what is wrong with them ("" if nothing).

    Ranks that hold the same element must hold the same bits: replicas that drift apart are a fault even if each is
    within its bound. Elements that no rank holds are NaN.
    """
    first = shards[0][0]
    whole = np.full(first.global_shape, np.nan, dtype=np.float64)
    held = np.zeros(first.global_shape, dtype=bool)
    problem = ""
    for rank, (shard, values) in enumerate(shards):
        where = tuple(slice(start, stop) for start, stop in shard.index)
        if whole[where].shape != values.shape:
            problem = problem or f"rank {rank} says it holds {_ranges(shard.index)}, and wrote shape {values.shape}"
            continue
        wide = values.astype(np.float64)
        if not np.array_equal(whole[where][held[where]], wide[held[where]], equal_nan=True):
            problem = problem or f"rank {rank} holds other values than another rank for the same elements"
        whole[where], held[where] = wide, True
    if not held.all():
        problem = problem or f"no rank holds {int((~held).sum())} of {held.size} elements"
    return whole, problem


def check_collectives(
    name: str,
    got: Sequence[Collective],
    expected: Sequence[Collective],
    is_compiled: bool = False,
    wider: Sequence[Collective] = (),
) -> tuple[Finding, list[str]]:
    """Bytes by (pass, axis, dtype, kind) equal the closed formula, no more and no less; and the rewrites found.

    A compiler may merge a forward collective with a backward one, so sums over both passes are compared; within a pass
    it may use equivalent collectives, and the sums of a loss may be combined with those of gradients. Dispatched or
    declared collectives must match exactly.
    wider: the same collectives, with those in float32 that a compiler may reduce before rounding to bfloat16.
    """
    finding = Finding()
    notes: list[str] = []
    want, have = _bytes(expected, not is_compiled), _bytes(got, not is_compiled)
    for key in sorted({*want, *have}):
        if want.get(key, 0) != have.get(key, 0):
            finding.fail(f"{name}: {' '.join(key)} moves {have.get(key, 0)} B, the formula says {want.get(key, 0)} B")
    if finding.verdict == "fail":
        rewrites, left = explain(payloads(expected), payloads(got), only_equivalents=True)
        if is_compiled and not left:
            return Finding(), list(dict.fromkeys(f"{name}: {rewrite.name}" for rewrite in rewrites))
        widened = [one for one, other in zip(wider, expected, strict=bool(wider)) if one != other]
        if widened:
            again, notes = check_collectives(name, got, wider, is_compiled)
            if again.verdict == "pass":
                more = sum(payloads(widened).values()) // 2
                return again, [f"{name}: sums over tokens {WIDENED}: {more} B more", *notes]
        return finding, notes
    num_got, num_want = (sum(entry.count for entry in entries) for entries in (got, expected))
    if num_got < num_want:
        notes.append(f"{name}: {num_want} collectives combined into {num_got}")
    elif num_got > num_want:
        notes.append(f"{name}: {num_want} collectives split into {num_got}")
    return finding, notes


def note_choice(name: str, got: Sequence[Collective], inherent: Sequence[Collective]) -> str:
    """What a framework's partitioner chose to move, in one line, beside the plan that moves what is inherent."""
    moved, least = (sum(entry.payload_bytes * entry.count for entry in entries) for entries in (got, inherent))
    calls = ", ".join(f"{' '.join(key)} {size:,}" for key, size in _bytes(got, by_pass=True).items())
    return f"{name} chose to move {moved:,} B, the formula {least:,} B: {calls}"


def _bytes(entries: Iterable[Collective], by_pass: bool) -> dict[tuple[str, ...], int]:
    """Payload bytes by ([pass,] axis, dtype, kind)."""
    total: dict[tuple[str, ...], int] = defaultdict(int)
    for entry in entries:
        key = (entry.axis, entry.dtype, entry.kind)
        total[(entry.pass_, *key) if by_pass else key] += entry.payload_bytes * entry.count
    return dict(total)
