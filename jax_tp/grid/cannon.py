"""Cannon's algorithm: the product of two matrices on a square grid; in each step every device multiplies two blocks.

Device (i, j) of the q by q grid holds block (i, j) of each matrix: a [M/q, K/q], b [K/q, N/q], c [M/q, N/q].

    form         in step t = 0 .. q-1 device (i, j) adds    what moves around the rings
    c = a b      a_il b_lj to c_ij           l = i+j+t      a left along y, b up along x; c stays
    a' = c b^T   c_ij b_lj^T to a'_il        l = i+j+t      b up along x, the sum a' left along y; c stays
    b' = a^T c   a_il^T c_ij to b'_lj        l = i+j+t      a left along y, the sum b' up along x; c stays

(indices modulo q). The last two are the gradients of the first: a' = dx and b' = dw for c = dy. A moving operand is
skewed first, a by i places left, b by j places up, and then moves one place between steps. A moving sum starts where
its first term is computed and is sent to its owner at the end: after step q-1, a'_il is at j = l-i-q+1, so it moves
i+q-1 places right. So each form permutes each of its two moving matrices q times, one block at a time; payload per
device, in elements:

    c = a b            permute y: q (M/q) (K/q) = M K/q      permute x: q (K/q) (N/q) = K N/q
    a' = c b^T         permute x: K N/q                      permute y: M K/q
    b' = a^T c         permute y: M K/q                      permute x: K N/q

In the skew, row 0 (or column 0) sends to itself; the permute is counted nevertheless, as the other rows do send.
Memory beside the blocks: one block of each moving matrix, and the one that is arriving.

Source: L. E. Cannon, A cellular computer to implement the Kalman filter algorithm, PhD thesis, Montana State
University (1969); the forms for the gradients move the sum instead of the stationary operand.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jax_tp.grid.collectives import in_order, shift, skew


def check_square(x: int, y: int) -> None:
    """Raises ValueError for a grid of other than q by q devices."""
    if x != y:
        raise ValueError(f"cannon: the grid is x={x} by y={y}; it must be square: take x={min(x, y)}, y={min(x, y)}")


@dataclass(frozen=True)
class Cannon:
    """The three forms over the axes x and y; `in_order` keeps XLA from sending blocks ahead of use."""

    x: str
    y: str

    def ab(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """c = a b: [M/q, K/q], [K/q, N/q] -> [M/q, N/q]. Sums over steps are in float32 for bfloat16."""
        wide = jnp.promote_types(a.dtype, jnp.float32)
        c = jnp.zeros((a.shape[0], b.shape[1]), wide)
        coming = skew(a, self.y, self.x, 0, 1), skew(b, self.x, self.y, 0, 1)
        for step in range(lax.axis_size(self.x)):
            a, b, c = in_order(*coming, c)  # a_il, b_lj
            if step < lax.axis_size(self.x) - 1:
                coming = shift(a, self.y, 1), shift(b, self.x, 1)
            c += jnp.dot(a, b).astype(wide)
        return c.astype(a.dtype)

    def abt(self, c: jax.Array, b: jax.Array) -> jax.Array:
        """a' = c b^T: [M/q, N/q], [K/q, N/q] -> [M/q, K/q]."""
        q, a = lax.axis_size(self.x), None
        coming = skew(b, self.x, self.y, 0, 1)
        for step in range(q):
            b, a = in_order(coming, a)  # b_lj
            if step < q - 1:
                coming = shift(b, self.x, 1)
            part = jnp.dot(c, b.T)
            a = part if a is None else part + shift(a, self.y, 1)  # a'_il so far
        return skew(a, self.y, self.x, 1 - q, -1)

    def atb(self, a: jax.Array, c: jax.Array) -> jax.Array:
        """b' = a^T c: [M/q, K/q], [M/q, N/q] -> [K/q, N/q]."""
        q, b = lax.axis_size(self.x), None
        coming = skew(a, self.y, self.x, 0, 1)
        for step in range(q):
            a, b = in_order(coming, b)  # a_il
            if step < q - 1:
                coming = shift(a, self.y, 1)
            part = jnp.dot(a.T, c)
            b = part if b is None else part + shift(b, self.x, 1)  # b'_lj so far
        return skew(b, self.x, self.y, 1 - q, -1)
