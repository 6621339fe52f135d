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
2 panel (M/X + N/Y), and at most panel (or the number of owners, if larger) columns or rows of products. Panels need not
divide K or align with blocks: a panel that spans several blocks is fetched in pieces.

Sources: van de Geijn & Watts, SUMMA: scalable universal matrix multiplication algorithm, Concurrency 9 (1997) 255-274,
which has all three forms; Optimus, https://arxiv.org/abs/2104.05343, uses them for the gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jax_tp.grid.collectives import broadcast, in_order, reduce_scatter

Range = tuple[int, int]  # [start, stop)


def panels(size: int, width: int) -> list[Range]:
    """[0, size) split into ranges of this width; the last may be narrower."""
    return [(start, min(start + width, size)) for start in range(0, size, width)]


def fetch(block: jax.Array, dim: int, panel: Range, axis: str) -> jax.Array:
    """Broadcast a range of the global `dim`, which the axis shards."""
    size, (start, stop) = block.shape[dim], panel
    parts = []
    for owner in range(start // size, (stop - 1) // size + 1):
        first, last = max(start - owner * size, 0), min(stop - owner * size, size)
        parts.append(broadcast(lax.slice_in_dim(block, first, last, axis=dim), axis, owner))
    return jnp.concatenate(parts, dim)


def one_ahead(items: Iterator) -> Iterator:
    """The same items, each drawn before the previous one is yielded, so that what it starts overlaps that one's use."""
    ahead = next(items)
    for following in items:
        yield ahead
        ahead = following
    yield ahead


@dataclass(frozen=True)
class Summa:
    """The three forms over the axes x and y, `panel` columns and rows at a time.

    The loops pass their operands through `in_order`, so that the panel after next is not sent before this product.
    """

    x: str
    y: str
    panel: int

    def ab(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """c = a b: [M/X, K/Y], [K/X, N/Y] -> [M/X, N/Y]. Sums over panels are in float32 for bfloat16."""
        wide = jnp.promote_types(a.dtype, jnp.float32)
        c = jnp.zeros((a.shape[0], b.shape[1]), wide)
        ranges = panels(a.shape[1] * lax.axis_size(self.y), self.panel)
        for columns, rows in one_ahead((fetch(a, 1, p, self.y), fetch(b, 0, p, self.x)) for p in ranges):
            c += jnp.dot(columns, rows).astype(wide)  # [M/X, panel] [panel, N/Y]
            a, b, c = in_order(a, b, c)
        return c.astype(a.dtype)

    def abt(self, c: jax.Array, b: jax.Array) -> jax.Array:
        """a' = c b^T: [M/X, N/Y], [K/X, N/Y] -> [M/X, K/Y]."""
        owners = lax.axis_size(self.y)
        size = b.shape[0] * lax.axis_size(self.x) // owners  # K/Y
        ranges = panels(size, -(-self.panel // owners))
        wanted = ((owner * size + start, owner * size + stop) for start, stop in ranges for owner in range(owners))
        rows = one_ahead(fetch(b, 0, p, self.x) for p in wanted)
        pieces = []
        for _ in ranges:
            parts = []  # for each owner [M/X, panel/Y], partial: sums over N/Y
            for _ in range(owners):
                part, b = in_order(jnp.dot(c, next(rows).T), b)
                parts.append(part)
            pieces.append(reduce_scatter(jnp.stack(parts), self.y, dim=0)[0])
        return jnp.concatenate(pieces, 1)

    def atb(self, a: jax.Array, c: jax.Array) -> jax.Array:
        """b' = a^T c: [M/X, K/Y], [M/X, N/Y] -> [K/X, N/Y]."""
        owners = lax.axis_size(self.x)
        size = a.shape[1] * lax.axis_size(self.y) // owners  # K/X
        ranges = panels(size, -(-self.panel // owners))
        wanted = ((owner * size + start, owner * size + stop) for start, stop in ranges for owner in range(owners))
        columns = one_ahead(fetch(a, 1, p, self.y) for p in wanted)
        pieces = []
        for _ in ranges:
            parts = []  # for each owner [panel/X, N/Y], partial: sums over M/X
            for _ in range(owners):
                part, a = in_order(jnp.dot(next(columns).T, c), a)
                parts.append(part)
            pieces.append(reduce_scatter(jnp.stack(parts), self.x, dim=0)[0])
        return jnp.concatenate(pieces, 0)
