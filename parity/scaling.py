"""What a pair of products sends and holds per GPU as the mesh grows: a test of the claim that 2D scales as sqrt(N).

The pair is an MLP without its activation: y = (x w_1) w_2, x [M, D], w_1 [D, F], w_2 [F, D], forward and backward, with
M = B S tokens. On p GPUs, in 2D a grid of q by q, q^2 = p, a GPU receives, in elements (f = F / D):

    megatron, sequence_parallel     4 M D (p-1)/p                           two all-reduces of M D, or their halves
    summa                           3 (M (D+F) + 2 D F) (q-1)/q^2           each form of each product moves two matrices
    cannon                          3 (M (D+F) + 2 D F) / q                 the skew moves the device's own block too
    gathered                        2 (M (D+F) + 2 D F) (q-1)/q^2           kept for backward, not sent again
    stationary                      4 M (D+F) (q-1)/q^2                     no weight moves

So a GPU of 1D receives as much on 256 GPUs as on 4, while one of 2D receives less in proportion to 1/sqrt(p). The sum
over all GPUs grows as p in 1D and as sqrt(p) in 2D: in this sense "from O(N) to O(sqrt N)" holds. Whether 2D receives
less than 1D depends on the shape:

    stationary    (1+f) (q-1) < q^2 - 1           q > f, for any M
    gathered      2 (1+f + 2 f D/M) < 4 (q+1)     M/D > 2 f / (2 (q+1) - (1+f)), nowhere while 2 (q+1) <= 1+f
    summa         3 (1+f + 2 f D/M) < 4 (q+1)     M/D > 6 f / (4 (q+1) - 3 (1+f)), nowhere while 4 (q+1) <= 3 (1+f)
    cannon        3 q (1+f + 2 f D/M) < 4 (q^2-1)

In words: 2D moves weights as well as activations, which pays off if there are many tokens relative to the width.

Sources: SUMMA, van de Geijn & Watts, Concurrency 9 (1997) 255-274; Cannon, PhD thesis (1969); Optimus,
https://arxiv.org/abs/2104.05343; Megatron-LM, https://arxiv.org/abs/1909.08053.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from parity.cases.grid_product import product
from parity.cases.notation import Expected
from parity.contract import Collective
from parity.question_contract import Answer, ChainQuestion
from parity.received import received_bytes

GPUS = (4, 16, 64, 256)
DIMS = {"M": 16384, "D": 4096, "F": 16384}
DTYPE = "bfloat16"
ONE_D = ("megatron", "sequence_parallel")
TWO_D = ("summa", "cannon", "gathered", "stationary")
SIDES, BLOCK, PANEL = (2, 4, 8, 16), 1024, 256  # of the table of temporaries

_MOVED = {
    "megatron": (
        ("all_reduce", "forward", "the sum of the products with the own rows of w_2"),
        ("all_reduce", "backward", "dx sums over the own columns of w_1"),
    ),
    "sequence_parallel": (
        ("all_gather", "forward", "all tokens of x"),
        ("reduce_scatter", "forward", "the sum of the products with the own rows of w_2"),
        ("all_gather", "backward", "all tokens of dy"),
        ("reduce_scatter", "backward", "dx sums over the own columns of w_1"),
    ),
}


def formulas_of(plan: str) -> tuple[Expected, ...]:
    """The collectives of the pair, forward and backward, over M, D, F and the axes of the mesh."""
    if plan in ONE_D:
        return tuple(Expected(kind, "tp", pass_, "M*D", reason) for kind, pass_, reason in _MOVED[plan])
    up = product(plan, "M", "D", {"w": "F"})
    return up + product(plan, "M", "F", {"w": "D"}, exchanged=plan == "stationary")


def mesh_of(plan: str, gpus: int) -> dict[str, int]:
    """The mesh of a plan on so many GPUs, a square number."""
    return {"tp": gpus} if plan in ONE_D else {"x": math.isqrt(gpus), "y": math.isqrt(gpus)}


def closed(plan: str, gpus: int, dims: Mapping[str, int]) -> list[Collective]:
    """The closed formula, with numbers."""
    sizes = {**dims, **mesh_of(plan, gpus)}
    return [formula.collective(sizes, DTYPE) for formula in formulas_of(plan)]


def by_kind(collectives: Iterable[Collective]) -> Counter[tuple[str, str]]:
    """Payload bytes by kind and axis. In how many parts does not matter, nor when: XLA combines some of both passes."""
    total: Counter[tuple[str, str]] = Counter()
    for one in collectives:
        total[one.kind, one.axis] += one.payload_bytes * one.count
    return total


def pair_questions(dims: Mapping[str, int], gpus: Sequence[int] = GPUS) -> list[ChainQuestion]:
    """The pair by every plan on every number of GPUs."""
    M, D, F = (dims[name] for name in "MDF")
    return [
        ChainQuestion(f"{plan}/{p}", plan, mesh_of(plan, p), M, (D, F, D), 0, True, DTYPE)
        for plan in (*ONE_D, *TWO_D)
        for p in gpus
    ]


def block_questions(sides: Sequence[int] = SIDES) -> list[ChainQuestion]:
    """One product y = x w by the 2D plans, forward, on grids of these sides, with the same blocks on every device."""
    return [
        ChainQuestion(
            f"block/{plan}/{q}",
            plan,
            {"x": q, "y": q},
            BLOCK * q,
            (BLOCK * q, BLOCK * q),
            PANEL if plan == "summa" else 0,
            False,
            DTYPE,
        )
        for plan in TWO_D
        for q in sides
    ]


@dataclass(frozen=True)
class Curve:
    """One plan over numbers of GPUs: bytes that a GPU receives, by the formula and as each framework was traced."""

    plan: str
    gpus: tuple[int, ...]
    closed: tuple[Fraction, ...]
    traced: Mapping[str, tuple[Fraction, ...]]  # framework -> bytes
    differs: tuple[str, ...]  # where a trace is not the formula, one line each

    def slope(self, last: int = 0) -> float:
        """Of log(bytes) over log(GPUs), by least squares; of the last so many numbers of GPUs only."""
        x, y = np.log(self.gpus[-last:]), np.log([float(value) for value in self.closed[-last:]])
        return float(np.polyfit(x, y, 1)[0])

    def to_json(self) -> dict[str, Any]:
        return {
            "plan": self.plan,
            "gpus": self.gpus,
            "closed_bytes": [float(value) for value in self.closed],
            **{f"{name}_bytes": [float(value) for value in self.traced[name]] for name in self.traced},
            "slope": self.slope(),
            "slope_of_last_two": self.slope(2),
            "differs": self.differs,
        }


def curve_of(
    plan: str, dims: Mapping[str, int], answers: Mapping[str, Mapping[str, Answer]], gpus: Sequence[int] = GPUS
) -> Curve:
    """The plan's curve, with every trace held to the formula by kind and axis."""
    differs = []
    for p in gpus:
        want = by_kind(closed(plan, p, dims))
        for framework in answers:
            got = by_kind(answers[framework][f"{plan}/{p}"].collectives)
            if got != want:
                excess = {" ".join(key): got[key] - want[key] for key in {*got, *want} if got[key] != want[key]}
                differs.append(f"{framework}, {plan} on {p} GPUs: more than the formula by {excess} bytes")
    traced = {
        framework: tuple(received_bytes(answers[framework][f"{plan}/{p}"].collectives, mesh_of(plan, p)) for p in gpus)
        for framework in answers
    }
    formula = tuple(received_bytes(closed(plan, p, dims), mesh_of(plan, p)) for p in gpus)
    return Curve(plan, tuple(gpus), formula, traced, tuple(differs))


def crossover(plan: str, gpus: int, dims: Mapping[str, int]) -> Fraction | None:
    """M / D from which on the 2D plan receives less than 1D; 0: always; None: never.

    Both are straight lines in M: 1D through 0, 2D from what the weights cost.
    """

    def at(one: str, tokens: int) -> Fraction:
        return received_bytes(closed(one, gpus, {**dims, "M": tokens}), mesh_of(one, gpus))

    unit = gpus  # every mesh divides it
    of_weights = 2 * at(plan, unit) - at(plan, 2 * unit)
    gain = at("megatron", unit) - (at(plan, unit) - of_weights)  # a unit of tokens
    if gain <= 0:
        return None
    return of_weights / gain * unit / dims["D"]


def sentence(dims: Mapping[str, int], gpus: Sequence[int] = GPUS) -> str:
    """For which shapes 2D receives less than 1D, and where it does not."""
    ratio = dims["F"] / dims["D"]
    parts = []
    for p in gpus:
        tokens = {plan: crossover(plan, p, dims) for plan in TWO_D}
        wins = [f"{plan} {phrase(value)}" for plan, value in tokens.items() if value is not None]
        parts.append(f"on {p} GPUs " + ("1D always" if not wins else ", ".join(wins)))
    return (
        f"At F = {ratio:g} D, 2D receives less than 1D: {'; '.join(parts)}. Else 1D does: its weights never move, and "
        "few tokens beside the width (M/D small) or few GPUs leave 2D nothing to save."
    )


def phrase(value: Fraction) -> str:
    """A crossover in words."""
    return "always" if value == 0 else f"from M/D = {float(value):.2g}"
