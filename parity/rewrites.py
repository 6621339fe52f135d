"""What a compiler may put in place of the collectives that a plan says, by name; what no name explains is left over.

    all-reduce = reduce-scatter + all-gather      S each: 2 (n-1)/n S on the wire either way; and the other way round
    all-reduces over a and b = one over a+b       a sum of sums: at S each, fewer bytes on the wire
    reduce-scatter = all-reduce + slice           twice the bytes on the wire
    combined with or hoisted into another pass    the same bytes, issued earlier or later
    reduced in float32, rounded afterwards        twice the bytes of bfloat16

Payloads are compared, in bytes a device: a compiler merges and splits collectives, so that counts say little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from parity.contract import PASSES, Collective
from parity.step_contract import TracedCollective

Key = tuple[str, str, str, str]  # pass, axis, dtype, kind

HOISTED = "combined with or hoisted into another pass"
WIDENED = "reduced in float32, rounded afterwards"
NESTED = "all-reduces over {} = one over all of them"
SLICED = "reduce-scatter = all-reduce + slice"


@dataclass(frozen=True)
class Rewrite:
    """Kinds in place of others, in one pass, on one axis, in one dtype, all of the same payload."""

    name: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    keeps_bytes: bool  # on the wire


REWRITES = (
    Rewrite("all-reduce = reduce-scatter + all-gather", ("all_reduce",), ("reduce_scatter", "all_gather"), True),
    Rewrite("reduce-scatter + all-gather = all-reduce", ("reduce_scatter", "all_gather"), ("all_reduce",), True),
    Rewrite(SLICED, ("reduce_scatter",), ("all_reduce",), False),
)


@dataclass(frozen=True)
class Explained:
    """One rewrite that was found, and how much of the plan's payload it is about."""

    name: str
    pass_: str
    axis: str
    kind: str  # of what the plan says
    payload_bytes: int


def payloads(entries: Iterable[Collective | TracedCollective]) -> dict[Key, int]:
    """Payload bytes of all calls by pass, axis, dtype and kind."""
    found: dict[Key, int] = {}
    for entry in entries:
        key = entry.pass_, entry.axis, entry.dtype, entry.kind
        found[key] = found.get(key, 0) + entry.payload_bytes * entry.count
    return found


def explain(
    want: Mapping[Key, int], have: Mapping[Key, int], only_equivalents: bool = False
) -> tuple[list[Explained], dict[Key, int]]:
    """The rewrites that lead from the plan's payloads to those found, and what is left: bytes more, or fewer (< 0).

    only_equivalents: no rewrite that changes the pass or the dtype, or puts more bytes on the wire.
    """
    more = {key: have.get(key, 0) - want.get(key, 0) for key in {*want, *have}}
    found: list[Explained] = []
    for rewrite in REWRITES:
        if rewrite.keeps_bytes or not only_equivalents:
            for where in sorted({key[:3] for key in more}):
                before = [(*where, kind) for kind in rewrite.before]
                after = [(*where, kind) for kind in rewrite.after]
                found += _apply(rewrite.name, more, before, after)
    for pass_, axis, dtype, kind in sorted(more):
        if kind == "all_reduce" and "+" in axis:
            parts = [(pass_, part, dtype, kind) for part in axis.split("+")]
            found += _apply(NESTED.format(" and ".join(axis.split("+"))), more, parts, [(pass_, axis, dtype, kind)])
    if not only_equivalents:
        for key in sorted(more):
            for pass_ in PASSES:
                found += _apply(HOISTED, more, [key], [(pass_, *key[1:])])
        for key in sorted(more):
            pass_, axis, dtype, kind = key
            if dtype == "bfloat16" and kind in ("all_reduce", "reduce_scatter"):
                found += _apply(WIDENED, more, [key], [(pass_, axis, "float32", kind)], 2)
                found += _apply(f"{SLICED}, {WIDENED}", more, [key], [(pass_, axis, "float32", "all_reduce")], 2)
    return found, {key: size for key, size in more.items() if size}


def _apply(name: str, more: dict[Key, int], before: list[Key], after: list[Key], scale: int = 1) -> list[Explained]:
    """Take a rewrite out of the differences, as much of it as there is. scale: of the payload, after to before."""
    size = min(*(-more.get(key, 0) for key in before), *(more.get(key, 0) // scale for key in after))
    if size <= 0:
        return []
    for key in before:
        more[key] += size
    for key in after:
        more[key] -= size * scale
    pass_, axis, _, kind = before[0]
    return [Explained(name, pass_, axis, kind, size)]
