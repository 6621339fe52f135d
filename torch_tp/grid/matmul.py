"""2D matrix product: Y = X W with all three split along both dims over a grid of devices.

    M rows (tokens)   K features in   N features out   X by Y devices on the axes "x" and "y"; device (x=i, y=j)

    x_MK per device  [M/X, K/Y]    block (i, j)
    w_KN per device  [K/X, N/Y]    block (i, j)
    y_MN per device  [M/X, N/Y]    block (i, j)

Forward and backward need three products: Y = X W, dX = dY W^T, dW = X^T dY; product.py has the algorithms. Payload per
device of each collective, in elements:

    plan           Y = X W                              dX = dY W^T                         dW = X^T dY
    summa          broadcast y: M/X K, x: K N/Y         broadcast x: K N/Y,                 broadcast y: M/X K,
                                                        reduce-scatter y: M/X K             reduce-scatter x: K N/Y
    cannon         permute y: M K/q, x: K N/q           the same                            the same
    gathered       all-gather y: M/X K, x: K N/Y        reduce-scatter y: M/X K             reduce-scatter x: K N/Y
    stationary     all-gather y: M K/X,                 all-gather x: M N/Y,                nothing
                   reduce-scatter x: M N/Y              reduce-scatter y: M K/X

In `stationary` neither w nor dw ever moves. Block (i, j) of w is multiplied by the columns K_i of X, so X is laid out
transposed, block (i, j) on device (x=j, y=i): gathered along y it becomes X[:, K_i]. The products are reduce-scattered
along x into rows. The next layer exchanges the roles of x and y.

`partitioner` only states the layouts of x, w and y; the framework chooses the collectives.

Sources: van de Geijn & Watts 1997 (SUMMA); Cannon 1969; Optimus, https://arxiv.org/abs/2104.05343; weight-stationary
in 2D: Pope et al., https://arxiv.org/abs/2211.05102, section 3.2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.experimental import local_map
from torch.nn.functional import linear

from torch_tp.grid.product import ALGORITHMS, grid_of, multiply
from torch_tp.layouts import Plan, place
from torch_tp.linear import PlainLinear

# A placement for each mesh axis, x then y. PyTorch stores the weight as [out, in]: K is dim 1, N is dim 0.
BLOCK, BLOCK_SWAPPED = (Shard(0), Shard(1)), (Shard(1), Shard(0))
WEIGHT = {"weight": (Shard(1), Shard(0))}

PLANS = {
    "summa": Plan(x=BLOCK, y=BLOCK, params=WEIGHT, algorithm="summa"),
    "cannon": Plan(x=BLOCK, y=BLOCK, params=WEIGHT, algorithm="cannon"),
    "gathered": Plan(x=BLOCK, y=BLOCK, params=WEIGHT, algorithm="gathered"),
    "stationary": Plan(x=BLOCK_SWAPPED, y=BLOCK, params=WEIGHT, algorithm="stationary"),
    "partitioner": Plan(x=BLOCK, y=BLOCK, params=WEIGHT),
}


class ShardedWeight(nn.Module):
    """The weight of the typed and manual layers: a DTensor, laid out as the plan says."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], panel: int = 0) -> None:
        super().__init__()
        self.mesh, self.plan, self.panel = mesh, plan, panel
        self.weight = nn.Parameter(place(state["w"].T, mesh, plan.params["weight"]))


# ---------------------------------------------------------------------------------------------------------- auto


class AutoPartitioner(PlainLinear):
    """PyTorch's own layer, whose weight `distribute_module` shards; `forward` is unchanged.

    (`parallelize_module` supports only meshes of one axis.)
    """

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__(mesh.device_type, state)

        def shard(_name: str, layer: nn.Module, mesh: DeviceMesh) -> None:
            weight = distribute_tensor(layer.weight, mesh, plan.params["weight"], src_data_rank=None)
            layer.weight = nn.Parameter(weight)
            # DTensor leaves the gradient of a leaf in the layout that its sharding rule gave, here Partial().
            layer.weight.register_hook(lambda grad: grad.redistribute(placements=plan.params["weight"]))

        def place_output(_layer: nn.Module, y_MN: DTensor, _mesh: DeviceMesh) -> DTensor:
            return y_MN.redistribute(placements=plan.y)

        distribute_module(self, mesh, shard, output_fn=place_output)


# --------------------------------------------------------------------------------------------------------- typed


class TypedPartitioner(ShardedWeight):
    """DTensor multiplies in the layouts that are cheapest to redistribute to; they determine the placements of y."""

    def forward(self, x_MK: DTensor) -> DTensor:
        # A no-op in the forward pass; in the backward pass it reduces the Partial() gradient of the weight.
        weight = self.weight.redistribute(placements=self.plan.params["weight"])
        return linear(x_MK, weight).redistribute(placements=self.plan.y)


# -------------------------------------------------------------------------------------------------------- manual


class ManualProduct(ShardedWeight):
    """The per-device code of product.py, on the blocks that the plan assigns to the device."""

    def forward(self, x_MK: DTensor) -> DTensor:
        per_device = local_map(
            self.body,
            in_placements=(self.plan.x, self.plan.params["weight"]),
            out_placements=list(self.plan.y),  # a tuple would mean several results
            device_mesh=self.mesh,
        )
        return per_device(x_MK, self.weight)

    def body(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return multiply(x, w.T, grid_of(self.mesh, self.plan, self.panel))


STYLES = {
    "auto": {"partitioner": AutoPartitioner},
    "typed": {"partitioner": TypedPartitioner},
    "manual": dict.fromkeys(ALGORITHMS, ManualProduct),
}


def build(mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], **options: Any) -> nn.Module:
    """The product with a weight in one of the styles; `state` holds the global w [K, N], `options` summa's `panel`."""
    return STYLES[style][plan.algorithm or "partitioner"](mesh, plan, state, **options)
