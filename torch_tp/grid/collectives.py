"""The collectives that only the grid uses; local tensors in, local tensors out.

    broadcast         one device of the axis sends its x to the others
    shift             every device of the axis sends its x to the one `by` places before it in the ring
    skew              a shift whose distance depends on the device's position along the other axis
    reduce_scatter    every device gets its shard of the sum of all devices' x

All return immediately; `wait` gives the result, and computation issued in between overlaps them.
They have no transposes: the algorithms of the grid define their own gradients.

Sources: torch.distributed._functional_collectives; a permute is an all-to-all in which each device fills one split,
which NCCL carries as one send and one receive.
"""

from __future__ import annotations

import torch
import torch.distributed._functional_collectives as funcol
from torch.distributed.device_mesh import DeviceMesh


def broadcast(x: torch.Tensor, axis: DeviceMesh, source: int) -> torch.Tensor:
    """x of the device `source` of the axis, on all of them (payload: x); on the others, x only gives the shape."""
    return funcol.broadcast(x.contiguous(), source, (axis, 0))


def shift(x: torch.Tensor, axis: DeviceMesh, by: int) -> torch.Tensor:
    """The x of the device `by` places further along the ring (payload: x)."""
    size, position = axis.size(), axis.get_local_rank()

    def only(peer: int) -> list[int]:
        return [len(x) if other == peer % size else 0 for other in range(size)]

    return funcol.all_to_all_single(x.contiguous(), only(position + by), only(position - by), (axis, 0))


def skew(x: torch.Tensor, axis: DeviceMesh, other: DeviceMesh, by: int, sign: int) -> torch.Tensor:
    """A shift by `by + sign * (position on the axis `other`)`, which differs from row to row (payload: x)."""
    return shift(x, axis, by + sign * other.get_local_rank())


def reduce_scatter(x: torch.Tensor, axis: DeviceMesh, dim: int) -> torch.Tensor:
    """This device's shard along `dim` of the sum of all devices' x (payload: x)."""
    return funcol.reduce_scatter_single(x.contiguous(), "sum", dim, (axis, 0))


def wait(x: torch.Tensor) -> torch.Tensor:
    """Wait for a collective that was started, and return its result."""
    return funcol.wait_tensor(x)
