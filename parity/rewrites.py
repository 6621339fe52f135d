"""The named rewrites by which a compiler may replace the collectives of a plan, and what they leave unexplained.

    all-reduce = reduce-scatter + all-gather      S each: 2 (n-1)/n S on the wire in either form, in both directions
    all-reduces over a and b = one over a+b       a sum of sums: at S each, fewer bytes on the wire
    reduce-scatter = all-reduce + slice           twice the bytes on the wire
    combined with or hoisted into another pass    the same bytes, issued earlier or later
    reduced in float32, rounded afterwards        twice the bytes of bfloat16

Payloads are compared, in bytes per device; counts are not, since a compiler merges and splits collectives.
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
# The sums of a loss, a few numbers, may be combined with those of gradients, in the backward pass.
LOSS_BYTES = 64


@dataclass(frozen=True)
class Rewrite:
    """Kinds that replace others in one pass, on one axis, in one dtype, all with the same payload."""

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
    """A rewrite that was found, and how much of the plan's payload it replaces."""

    name: str
    pass_: str
    axis: str
    kind: str  # in the plan
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
    """The rewrites that lead from the plan's payloads to those found, and the bytes in excess (negative: missing).

    only_equivalents: exclude rewrites that change the pass (but of a loss summed over several axes) or the dtype, or
    put more bytes on the wire.
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
            name = NESTED.format(" and ".join(axis.split("+")))
            for own in ("backward", "forward") if pass_ == "backward" else (pass_,):
                parts = [(own, part, dtype, kind) for part in axis.split("+")]
                if own == pass_ or all(-more.get(part, 0) <= LOSS_BYTES for part in parts):
                    found += _apply(name, more, parts, [(pass_, axis, dtype, kind)])
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
    """Subtract a rewrite from the differences as far as it applies. scale: payload after over payload before."""
    size = min(*(-more.get(key, 0) for key in before), *(more.get(key, 0) // scale for key in after))
    if size <= 0:
        return []
    for key in before:
        more[key] += size
    for key in after:
        more[key] -= size * scale
    pass_, axis, _, kind = before[0]
    return [Explained(name, pass_, axis, kind, size)]
