"""Several column-parallel linears of the same x in one product: y = x [w_0 | w_1 | ...] + [b_0 | b_1 | ...].

    B batch   S sequence   D features in   C linears   F features out of each   tp devices on the axis "tp"

    x_BSD per device   [B, S, D]
    w_DCF per device   [D, C, F/tp]
    y_BSCF per device  [B, S, C, F/tp]

In memory the weights lie one after the other. Sharded as one matrix of C*F columns, a device could hold columns of one
linear only, and splitting y again would move all of it. Viewed as C matrices, each sharded by columns, nothing moves.
A checkpoint of the contiguous [D, C*F] has the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from torch.nn.functional import linear

from torch_tp.layouts import Plan, place, to_tensor

# The weight is [C, F, D], the bias [C, F].
PACKED_COLUMN = Plan(x=Replicate(), y=Shard(3), params={"weight": Shard(1), "bias": Shard(1)})


def linears(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """All C linears, on whatever shards are given: x [B, S, D], w [C, F, D], b [C, F] -> [B, S, C, F]."""
    y = linear(x, w.flatten(0, 1)).unflatten(-1, w.shape[:2])
    return y if b is None else y + b


class PlainPackedLinear(nn.Module):
    """The unsharded layer: what `parallelize_module` starts from."""

    def __init__(self, device: str, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.weight = nn.Parameter(to_tensor(np.moveaxis(state["w"], 0, -1), device))
        self.bias = nn.Parameter(to_tensor(state["b"], device)) if "b" in state else None

    def forward(self, x_BSD: DTensor) -> DTensor:
        return linears(x_BSD, self.weight, self.bias)


class ShardedPackedLinear(nn.Module):
    """The parameters of the typed and manual layers: DTensors, laid out as the plan says."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.weight = nn.Parameter(place(np.moveaxis(state["w"], 0, -1), mesh, plan.params["weight"]))
        self.bias = nn.Parameter(place(state["b"], mesh, plan.params["bias"])) if "b" in state else None
        self.placements = [plan.params["weight"]], None if self.bias is None else [plan.params["bias"]]


class PackedColwiseParallel(ParallelStyle):
    """`ColwiseParallel` for packed weights: the original shards dim 0, which here is the index of the linear."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, self.partition)

    def partition(self, _name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        """Replace the module's parameters with sharded ones."""
        for name, parameter in module.named_parameters(recurse=False):
            sharded = distribute_tensor(parameter, mesh, [PACKED_COLUMN.params[name]], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(sharded))
