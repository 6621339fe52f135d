"""Bytes that one device receives in a collective: what a plan costs where every device has links of its own.

    kind                      of the payload S, n devices    what comes
    all_gather, all_to_all    (n-1)/n                        all parts but the own
    reduce_scatter            (n-1)/n                        every other device's part of the own sum
    all_reduce                2 (n-1)/n                      a reduce-scatter and an all-gather
    broadcast                 (n-1)/n                        all to all but the source; a mean over devices
    permute                   1                              the message, where one comes

The broadcasts of SUMMA have every device of an axis as a source once, for equal parts of the whole: there the mean is
what each receives. A reduction that a network does itself (NVLink SHARP) would receive less.

Source: https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md, whose bus bandwidths count the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction

from parity.contract import Collective


def received_bytes(collectives: Iterable[Collective], mesh: Mapping[str, int]) -> Fraction:
    """What a device receives in all of them; exact. An axis "?" is counted as the whole mesh."""
    return sum((_received(one, mesh) for one in collectives), Fraction(0))


def _received(one: Collective, mesh: Mapping[str, int]) -> Fraction:
    n = math.prod(mesh.values() if one.axis == "?" else (mesh[axis] for axis in one.axis.split("+")))
    share = {"all_reduce": Fraction(2 * (n - 1), n), "permute": Fraction(1)}.get(one.kind, Fraction(n - 1, n))
    return one.payload_bytes * one.count * share
