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

import torch
from torch.distributed.device_mesh import DeviceMesh

from torch_tp.grid.collectives import shift, skew, wait


def check_square(x: int, y: int) -> None:
    """Raises ValueError for a grid of other than q by q devices."""
    if x != y:
        raise ValueError(f"cannon: the grid is x={x} by y={y}; it must be square: take x={min(x, y)}, y={min(x, y)}")


@dataclass(frozen=True)
class Cannon:
    """The three forms over the axes x and y."""

    x: DeviceMesh
    y: DeviceMesh

    def ab(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """c = a b: [M/q, K/q], [K/q, N/q] -> [M/q, N/q]. Sums over steps are in float32 for bfloat16."""
        wide = torch.promote_types(a.dtype, torch.float32)
        c = torch.zeros(a.shape[0], b.shape[1], dtype=wide, device=a.device)
        coming = skew(a, self.y, self.x, 0, 1), skew(b, self.x, self.y, 0, 1)
        for step in range(self.x.size()):
            a, b = map(wait, coming)  # a_il, b_lj
            if step < self.x.size() - 1:
                coming = shift(a, self.y, 1), shift(b, self.x, 1)
            c += (a @ b).to(wide)
        return c.to(a.dtype)

    def abt(self, c: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a' = c b^T: [M/q, N/q], [K/q, N/q] -> [M/q, K/q]."""
        q, a = self.x.size(), None
        coming = skew(b, self.x, self.y, 0, 1)
        for step in range(q):
            b = wait(coming)  # b_lj
            if step < q - 1:
                coming = shift(b, self.x, 1)
            part = c @ b.T
            a = part if a is None else part + wait(shift(a, self.y, 1))  # a'_il so far
        return wait(skew(a, self.y, self.x, 1 - q, -1))

    def atb(self, a: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """b' = a^T c: [M/q, K/q], [M/q, N/q] -> [K/q, N/q]."""
        q, b = self.x.size(), None
        coming = skew(a, self.y, self.x, 0, 1)
        for step in range(q):
            a = wait(coming)  # a_il
            if step < q - 1:
                coming = shift(a, self.y, 1)
            part = a.T @ c
            b = part if b is None else part + wait(shift(b, self.x, 1))  # b'_lj so far
        return wait(skew(b, self.x, self.y, 1 - q, -1))
