"""The collectives of 1D tensor parallelism, each with its transpose, which runs in the backward pass.

    forward                 backward            Megatron-LM's name
    copy_to_tp              all-reduce          f
    reduce_from_tp          identity            g
    gather_from_tp          split               gather_from_tensor_model_parallel_region
    split_to_tp             all-gather          scatter_to_tensor_model_parallel_region
    max_over_tp             none                part of vocab_parallel_cross_entropy
    gather_from_sp          reduce-scatter      gather_from_sequence_parallel_region
    reduce_scatter_to_sp    all-gather          reduce_scatter_to_sequence_parallel_region

All operate on local tensors, inside `local_map`. A value is *replicated* if every device of the axis holds the same
value and *varying* if each holds its own. The transposes follow from this: where a replicated value enters varying
computations, its gradient is the sum of the devices' contributions.
`axis` is the mesh axis as a one-dimensional DeviceMesh, e.g. `mesh["tp"]`.

Sources: Megatron-LM, https://arxiv.org/abs/1909.08053, section 3, and 2205.05198, section 4.2.2;
torch.distributed._functional_collectives.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed._functional_collectives as funcol
from torch.distributed.device_mesh import DeviceMesh


def _all_reduce(x: torch.Tensor, axis: DeviceMesh) -> torch.Tensor:
    return funcol.wait_tensor(funcol.all_reduce(x.contiguous(), "sum", (axis, 0)))


def _all_gather(x: torch.Tensor, axis: DeviceMesh, dim: int) -> torch.Tensor:
    return funcol.wait_tensor(funcol.all_gather_single(x.contiguous(), dim, (axis, 0)))


def _reduce_scatter(x: torch.Tensor, axis: DeviceMesh, dim: int) -> torch.Tensor:
    return funcol.wait_tensor(funcol.reduce_scatter_single(x.contiguous(), "sum", dim, (axis, 0)))


def _own_part(x: torch.Tensor, axis: DeviceMesh, dim: int) -> torch.Tensor:
    return x.chunk(axis.size(), dim)[axis.get_local_rank()].contiguous()


class _CopyToTp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: DeviceMesh) -> torch.Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _all_reduce(grad, ctx.axis), None


class _ReduceFromTp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: DeviceMesh) -> torch.Tensor:
        return _all_reduce(x, axis)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


class _GatherFromTp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: DeviceMesh, dim: int) -> torch.Tensor:
        ctx.axis, ctx.dim = axis, dim
        return _all_gather(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _own_part(grad, ctx.axis, ctx.dim), None, None


class _SplitToTp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: DeviceMesh, dim: int) -> torch.Tensor:
        ctx.axis, ctx.dim = axis, dim
        return _own_part(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _all_gather(grad, ctx.axis, ctx.dim), None, None


class _GatherFromSp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: DeviceMesh, dim: int) -> torch.Tensor:
        ctx.axis, ctx.dim = axis, dim
        return _all_gather(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _reduce_scatter(grad, ctx.axis, ctx.dim), None, None


class _ReduceScatterToSp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: DeviceMesh, dim: int) -> torch.Tensor:
        ctx.axis, ctx.dim = axis, dim
        return _reduce_scatter(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _all_gather(grad, ctx.axis, ctx.dim), None, None


def copy_to_tp(x: torch.Tensor, axis: DeviceMesh) -> torch.Tensor:
    """Replicated -> varying: no-op forward; all-reduce of the gradient backward (payload: x)."""
    return _CopyToTp.apply(x, axis)


def reduce_from_tp(x: torch.Tensor, axis: DeviceMesh) -> torch.Tensor:
    """Varying -> replicated: all-reduce forward (payload: x); no-op backward."""
    return _ReduceFromTp.apply(x, axis)


def max_over_tp(x: torch.Tensor, axis: DeviceMesh) -> torch.Tensor:
    """Varying -> replicated: all-reduce with max forward (payload: x). Not differentiable: x must be detached."""
    return funcol.wait_tensor(funcol.all_reduce(x.contiguous(), "max", (axis, 0)))


def gather_from_tp(x: torch.Tensor, axis: DeviceMesh, dim: int) -> torch.Tensor:
    """Varying -> replicated: all-gather along `dim` forward (payload: the gathered x); a slice of the gradient."""
    return _GatherFromTp.apply(x, axis, dim)


def split_to_tp(x: torch.Tensor, axis: DeviceMesh, dim: int) -> torch.Tensor:
    """Replicated -> varying: a slice along `dim` forward; all-gather of the gradient backward (payload: x)."""
    return _SplitToTp.apply(x, axis, dim)


def gather_from_sp(x: torch.Tensor, axis: DeviceMesh, dim: int) -> torch.Tensor:
    """Varying -> varying: all-gather along `dim` forward, reduce-scatter of the gradient backward (payload: all of x).

    Unlike after gather_from_tp, each device uses the gathered x in a different computation, so their gradients add up.
    """
    return _GatherFromSp.apply(x, axis, dim)


def reduce_scatter_to_sp(x: torch.Tensor, axis: DeviceMesh, dim: int) -> torch.Tensor:
    """Varying -> varying: reduce-scatter along `dim` forward, all-gather of the gradient backward (payload: x)."""
    return _ReduceScatterToSp.apply(x, axis, dim)
