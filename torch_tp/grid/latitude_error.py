"""Latitude-weighted error on the grid, of a field predicted in patches with sharded features: latitude_error.py.

B batch   C channels   I latitudes   J longitudes   P side of a patch   T = I/P * J/P tokens   F = C*P*P
X by Y devices on the axes "x" and "y"

                       grid                exchanged
x_BTF a device         [B/X, T, F/Y]       [B/Y, T, F/X]     the prediction, as the grid's linears return it
truth_BCIJ a device    [B/X, C, I, J]      [B/Y, C, I, J]    data: no gradient
y                      []                  []                float32 for bfloat16 predictions
forward                all-reduce of a scalar over all devices
backward               no collective
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import local_map

from torch_tp.collectives import reduce_from_tp
from torch_tp.grid.linear import BLOCK, EXCHANGED
from torch_tp.grid.product import axes_of
from torch_tp.latitude_error import LatitudeError
from torch_tp.layouts import Plan

PLANS = {
    "grid": Plan(
        x=BLOCK,
        y=(Replicate(), Replicate()),
        inputs={"truth": (Shard(0), Replicate())},
        constants=("truth",),
    ),
    "exchanged": Plan(
        x=EXCHANGED,
        y=(Replicate(), Replicate()),
        inputs={"truth": (Replicate(), Shard(0))},
        constants=("truth",),
    ),
}


# -------------------------------------------------------------------------------------------------------- manual


class ManualGridLatitudeError(LatitudeError):
    """`body` is the per-device code, on this device's features of its fields."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, patch: int) -> None:
        super().__init__(mesh, plan, patch)
        self.all_devices = mesh._flatten("+".join(mesh.mesh_dim_names or ()))

    def forward(self, x_BTF: DTensor, truth_BCIJ: DTensor) -> DTensor:
        per_device = local_map(
            self.body,
            in_placements=(self.plan.x, self.plan.inputs["truth"]),
            out_placements=list(self.plan.y),
            device_mesh=self.axis,
        )
        return per_device(x_BTF, truth_BCIJ)

    def body(self, x: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        rows, columns = axes_of(self.axis, self.plan.x)
        own = self.weighted_squares(x, truth, columns)
        return reduce_from_tp(own, self.all_devices) / (truth.numel() * rows.size())


STYLES = {"manual": ManualGridLatitudeError}


def build(mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], patch: int) -> nn.Module:
    """The layer; `state` is empty."""
    return STYLES[style](mesh, plan, patch)
