"""SUMMA: the product of two matrices on a grid, panel by panel of the contracted dim.

Device (i, j) of the X by Y grid holds block (i, j) of each matrix: a [M/X, K/Y], b [K/X, N/Y], c [M/X, N/Y].

    form               per device                    for each panel p of K
    c = a b            c_ij = Σ_p a_ip b_pj          broadcast a_ip along y, b_pj along x; add their product to c
    a' = c b^T         a'_ip = Σ_j c_ij b_pj^T       broadcast b_pj along x; reduce the product along y to p's owner
    b' = a^T c         b'_pj = Σ_i a_ip^T c_ij       broadcast a_ip along y; reduce the product along x to p's owner

The last two are the gradients of the first: a' = dx and b' = dw for c = dy. They need no transposed matrix.
XLA has no reduction to a single device. So the terms for one piece of every owner are computed first, and then one
reduce-scatter gives each owner its piece: the same payload, with all links in use. Payload per device, in elements,
summed over the panels, which are disjoint and cover K:

    c = a b            broadcast y: M/X K      broadcast x: K N/Y
    a' = c b^T         broadcast x: K N/Y      reduce-scatter y: M/X K
    b' = a^T c         broadcast y: M/X K      reduce-scatter x: K N/Y

Memory beside the blocks does not grow with the grid: the panel in use and the one that is arriving,
2 panel (M/X + N/Y), and the products that are being computed and those that are being reduced, each at most panel (or
the number of owners, if larger) columns or rows. Panels need not divide K or align with blocks: a panel that spans
several blocks is fetched in pieces.

Sources: van de Geijn & Watts, SUMMA: scalable universal matrix multiplication algorithm, Concurrency 9 (1997) 255-274,
which has all three forms; Optimus, https://arxiv.org/abs/2104.05343, uses them for the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh

from torch_tp.grid.collectives import broadcast, reduce_scatter, wait

Range = tuple[int, int]  # [start, stop)


def panels(size: int, width: int) -> list[Range]:
    """[0, size) split into ranges of this width; the last may be narrower."""
    return [(start, min(start + width, size)) for start in range(0, size, width)]


def fetch(block: torch.Tensor, dim: int, panel: Range, axis: DeviceMesh) -> Callable[[], torch.Tensor]:
    """Start to broadcast a range of the global `dim`, which the axis shards; call the returned function to wait."""
    size, (start, stop) = block.shape[dim], panel
    parts = []
    for owner in range(start // size, (stop - 1) // size + 1):
        first, last = max(start - owner * size, 0), min(stop - owner * size, size)
        parts.append(broadcast(block.narrow(dim, first, last - first), axis, owner))
    return lambda: wait(parts[0]) if len(parts) == 1 else torch.cat([wait(part) for part in parts], dim)


def one_ahead(items: Iterator) -> Iterator:
    """The same items, each drawn before the previous one is yielded, so that what it starts overlaps that one's use."""
    ahead = next(items)
    for following in items:
        yield ahead
        ahead = following
    yield ahead


@dataclass(frozen=True)
class Summa:
    """The three forms over the axes x and y, `panel` columns and rows at a time."""

    x: DeviceMesh
    y: DeviceMesh
    panel: int

    def ab(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """c = a b: [M/X, K/Y], [K/X, N/Y] -> [M/X, N/Y]. Sums over panels are in float32 for bfloat16."""
        wide = torch.promote_types(a.dtype, torch.float32)
        c = torch.zeros(a.shape[0], b.shape[1], dtype=wide, device=a.device)
        ranges = panels(a.shape[1] * self.y.size(), self.panel)
        for columns, rows in one_ahead((fetch(a, 1, p, self.y), fetch(b, 0, p, self.x)) for p in ranges):
            if c.dtype == a.dtype:
                c.addmm_(columns(), rows())  # [M/X, panel] [panel, N/Y]
            else:
                c += columns() @ rows()
        return c.to(a.dtype)

    def abt(self, c: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a' = c b^T: [M/X, N/Y], [K/X, N/Y] -> [M/X, K/Y]."""
        owners = self.y.size()
        size = b.shape[0] * self.x.size() // owners  # K/Y
        ranges = panels(size, -(-self.panel // owners))
        wanted = ((owner * size + start, owner * size + stop) for start, stop in ranges for owner in range(owners))
        rows = one_ahead(fetch(b, 0, p, self.x) for p in wanted)

        def pieces() -> Iterator[torch.Tensor]:
            for start, stop in ranges:
                parts = c.new_empty(owners, c.shape[0], stop - start)  # for each owner, partial: sums over N/Y
                for part in parts:
                    torch.mm(c, next(rows)().T, out=part)
                yield reduce_scatter(parts, self.y, dim=0)

        return torch.cat([wait(piece)[0] for piece in one_ahead(pieces())], 1)

    def atb(self, a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """b' = a^T c: [M/X, K/Y], [M/X, N/Y] -> [K/X, N/Y]."""
        owners = self.x.size()
        size = a.shape[1] * self.y.size() // owners  # K/X
        ranges = panels(size, -(-self.panel // owners))
        wanted = ((owner * size + start, owner * size + stop) for start, stop in ranges for owner in range(owners))
        columns = one_ahead(fetch(a, 1, p, self.y) for p in wanted)

        def pieces() -> Iterator[torch.Tensor]:
            for start, stop in ranges:
                parts = c.new_empty(owners, stop - start, c.shape[1])  # for each owner, partial: sums over M/X
                for part in parts:
                    torch.mm(next(columns)().T, c, out=part)
                yield reduce_scatter(parts, self.x, dim=0)

        return torch.cat([wait(piece)[0] for piece in one_ahead(pieces())], 0)
