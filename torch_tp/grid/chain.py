"""Chains of products x w_1 w_2 ... under one plan: what a device sends and holds, on a mesh that need not exist.

    plan                  mesh     x [M, D]            w_1, w_3, ... [D, F]    w_2, w_4, ... [F, D]
    megatron              tp       whole               columns over tp         rows over tp
    sequence_parallel     tp       rows over tp        columns over tp         rows over tp
    summa, cannon,        x, y     blocks (x, y)       blocks (x, y)           blocks (x, y)
    gathered
    stationary            x, y     blocks (y, x)       blocks (x, y)           blocks (y, x)

The first two plans use the weights in pairs: an MLP without its activation.

Sources: those of linear.py and grid/matmul.py.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from parity.question_contract import ChainQuestion
from torch_tp.collectives import copy_to_tp, gather_from_sp, reduce_from_tp, reduce_scatter_to_sp
from torch_tp.grid.product import Grid, multiply
from torch_tp.mesh import make_mesh
from torch_tp.trace import Call, RecordCollectives

Axes = tuple[str | None, str | None]  # the axes that shard the rows and the columns of a matrix
LAYOUTS: dict[str, tuple[Axes, Axes, Axes]] = {  # of x, of w_1, of w_2
    "megatron": ((None, None), (None, "tp"), ("tp", None)),
    "sequence_parallel": (("tp", None), (None, "tp"), ("tp", None)),
    "summa": (("x", "y"), ("x", "y"), ("x", "y")),
    "cannon": (("x", "y"), ("x", "y"), ("x", "y")),
    "gathered": (("x", "y"), ("x", "y"), ("x", "y")),
    "stationary": (("y", "x"), ("x", "y"), ("y", "x")),
}


def layouts_of(plan: str, num_products: int) -> list[Axes]:
    """The layouts of x, w_1, w_2, ..., and of the result."""
    x, odd, even = LAYOUTS[plan]
    ws = [(odd, even)[index % 2] for index in range(num_products)]
    return [x, *ws, ws[-1] if plan == "stationary" else x]


def multiply_all(x: torch.Tensor, ws: Sequence[torch.Tensor], mesh: DeviceMesh, plan: str, panel: int) -> torch.Tensor:
    """This device's shard of x w_1 w_2 ..., from its shards. Raises ValueError for an odd number of weights in 1D."""
    if plan in ("megatron", "sequence_parallel"):
        for up, down in zip(ws[::2], ws[1::2], strict=True):
            x = copy_to_tp(x, mesh["tp"]) if plan == "megatron" else gather_from_sp(x, mesh["tp"], dim=0)
            y = x @ up @ down
            x = reduce_from_tp(y, mesh["tp"]) if plan == "megatron" else reduce_scatter_to_sp(y, mesh["tp"], dim=0)
        return x
    for index, w in enumerate(ws):
        rows, columns = ("y", "x") if plan == "stationary" and index % 2 else ("x", "y")
        x = multiply(x, w, Grid(mesh[rows], mesh[columns], plan, panel))
    return x


def operands_of(question: ChainQuestion, mesh: DeviceMesh) -> tuple[list[torch.Tensor], torch.Tensor]:
    """This device's shards of x, w_1, w_2, ... and of a cotangent of the result, with random values."""
    first, *_, last = question.widths
    shapes = [(question.rows, first), *itertools.pairwise(question.widths), (question.rows, last)]

    def shard(shape: tuple[int, int], axes: Axes) -> torch.Tensor:
        local = [size // (mesh[axis].size() if axis else 1) for size, axis in zip(shape, axes, strict=True)]
        return torch.rand(local, dtype=getattr(torch, question.dtype), device=mesh.device_type)

    *operands, cotangent = map(shard, shapes, layouts_of(question.plan, len(question.widths) - 1))
    for tensor in operands:
        tensor.requires_grad_(question.backward)
    return operands, cotangent


def run(
    question: ChainQuestion, mesh: DeviceMesh, operands: Sequence[torch.Tensor], cotangent: torch.Tensor
) -> list[torch.Tensor]:
    """The result and, if asked for, the gradients of all operands."""
    y = multiply_all(operands[0], operands[1:], mesh, question.plan, question.panel)
    return [y, *(torch.autograd.grad(y, operands, cotangent) if question.backward else ())]


class HeldBytes(TorchDispatchMode):
    """Bytes of the live storages that were allocated inside this context: now (`held`) and at most (`peak`).

    An allocator's rounding and fragmentation are not included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._alive: dict[int, int] = {}  # storage -> its bytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._alive:
            self._alive[storage._cdata] = storage.nbytes()
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._freed, storage._cdata)

    def _freed(self, key: int) -> None:
        self.held -= self._alive.pop(key)


class Traced(NamedTuple):
    """The collectives that a device dispatches, and the peak of the bytes that it holds beside operands and results."""

    calls: list[Call]
    temporary_bytes: int


def chain(question: ChainQuestion) -> Traced:
    """Run the products on tensors without data. Call inside `fake_group`."""
    mesh = make_mesh(question.mesh, "cpu")
    operands, cotangent = operands_of(question, mesh)
    with RecordCollectives(mesh) as record, HeldBytes() as held:
        results = run(question, mesh, operands, cotangent)
    return Traced(record.calls, held.peak - sum(result.nbytes for result in results))
