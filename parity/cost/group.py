"""A group of GPUs that take part in one collective, as far as its cost depends on it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from parity.sizes import sizes_text

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "permute")


class CostError(ValueError):
    """A group, payload or machine that the cost model cannot take; the message is one line for the user."""


@dataclass(frozen=True)
class Group:
    """`gpus` GPUs spread evenly over `nodes` nodes, beside `sharing` - 1 groups like it that use the same NICs.

    An fsdp axis whose members sit one a node, while the 4 tensor-parallel ranks of each node each run one such group,
    is Group(gpus=nodes, nodes=nodes, sharing=4).
    """

    gpus: int
    nodes: int = 1
    sharing: int = 1

    def __post_init__(self) -> None:
        if min(self.gpus, self.nodes, self.sharing) < 1:
            raise CostError(f"group {self.gpus} GPUs on {self.nodes} nodes, sharing {self.sharing}: each must be >= 1")
        if self.gpus % self.nodes:
            raise CostError(f"group of {self.gpus} GPUs: does not divide over {self.nodes} nodes")

    @property
    def gpus_per_node(self) -> int:
        return self.gpus // self.nodes

    @classmethod
    def of_axis(cls, mesh: Mapping[str, int], axis: str, gpus_per_node: int) -> Group:
        """The groups along one axis (or several joined by "+") of a mesh whose ranks fill node after node.

        `mesh` is axis name -> size, outermost first. Raises CostError for an unknown axis, and for a mesh whose groups
        would be spread unevenly over the nodes.
        """
        names = axis.split("+")
        if unknown := [name for name in names if name not in mesh]:
            raise CostError(f"axis {unknown[0]!r}: the mesh has {', '.join(mesh)}")
        members, offsets = [0], [0]
        stride = math.prod(mesh.values())
        for name, size in mesh.items():
            stride //= size
            ranks = members if name in names else offsets
            ranks[:] = [rank + index * stride for rank in ranks for index in range(size)]
        shapes = {tuple(sorted(Counter((m + o) // gpus_per_node for m in members).values())) for o in offsets}
        per_node = min(min(shape) for shape in shapes)
        if len(shapes) > 1 or set(*shapes) != {per_node}:
            text = sizes_text(mesh)
            raise CostError(f"mesh {text}: groups of axis {axis!r} lie unevenly on nodes of {gpus_per_node} GPUs")
        nodes = len(members) // per_node
        occupied = min(gpus_per_node, math.prod(mesh.values()))
        return cls(len(members), nodes, occupied // per_node if nodes > 1 else 1)


def wire_factor(kind: str, gpus: int) -> float:
    """Bytes that a GPU sends for each byte of payload: busbw = wire_factor * payload / time, as in nccl-tests.

    all_reduce 2(n-1)/n; all_gather, reduce_scatter, all_to_all (n-1)/n; broadcast, permute 1.
    """
    if kind not in KINDS:
        raise CostError(f"collective {kind!r}: not one of {', '.join(KINDS)}")
    if kind in ("broadcast", "permute"):
        return 1.0 if gpus > 1 else 0.0
    return (2 if kind == "all_reduce" else 1) * (gpus - 1) / gpus
