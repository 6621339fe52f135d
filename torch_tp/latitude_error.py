"""Latitude-weighted mean squared error of a field that is predicted in patches with sharded features.

    B batch   C channels   I latitudes   J longitudes   P side of a patch   T = I/P * J/P tokens   F = C*P*P
    tp devices on the axis "tp"

    x_BTF per device       [B, T, F/tp]   the prediction, in patches
    truth_BCIJ per device  [B, C, I, J]   data: no gradient
    y                      []             float32 for bfloat16 predictions, as are all intermediate values

    y                      1 / (B C I J) Σ w_i (prediction - truth)²
    w_i                    cos(latitude_i) / mean_i cos(latitude_i),   latitude_i = 90 - (i + ½) 180 / I degrees
    forward                all-reduce of a scalar: y sums over F, which is sharded
    backward               no collective

On a latitude-longitude grid the circles of latitude shrink towards the poles; w_i gives equal areas equal weight.
The prediction is never gathered; the truth is cut into patches, and each device takes its features of them.

Source: WeatherBench, Rasp et al., https://arxiv.org/abs/2002.00469, the latitude-weighted RMSE.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import local_map

from torch_tp.collectives import reduce_from_tp, split_to_tp
from torch_tp.layouts import Plan, place, to_tensor

PLANS = {
    "feature_parallel": Plan(x=Shard(2), y=Replicate(), inputs={"truth": Replicate()}, constants=("truth",)),
}


def cut_patches(x_BCIJ: torch.Tensor, patch: int) -> torch.Tensor:
    """[B, C, I, J] -> [B, T, F]: patches in row-major order, features in the order of Conv2d (channel, row, column).

    Raises ValueError for a patch that does not tile the grid.
    """
    B, C, I, J = x_BCIJ.shape
    check_patch(I, J, patch)
    cut = x_BCIJ.reshape(B, C, I // patch, patch, J // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(B, (I // patch) * (J // patch), C * patch * patch)


def check_patch(num_rows: int, num_columns: int, patch: int) -> None:
    """Raises ValueError for a patch that does not tile the grid."""
    if num_rows % patch or num_columns % patch:
        raise ValueError(
            f"patch={patch} does not tile the grid of {num_rows} x {num_columns}: a divisor of both would work"
        )


def latitude_weights(num_rows: int) -> np.ndarray:
    """w_I in float64, for num_rows equal rows of cells from pole to pole."""
    latitudes = 90 - (np.arange(num_rows) + 0.5) * 180 / num_rows  # at the centres of the cells
    cosines = np.cos(np.deg2rad(latitudes))
    return cosines / cosines.mean()


class LatitudeError(nn.Module):
    """The loss for patches of a given side; it has no parameters."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, patch: int) -> None:
        super().__init__()
        self.axis, self.plan, self.patch = mesh, plan, patch

    def weigh(self, truth_BCIJ: torch.Tensor) -> np.ndarray:
        """The weight of every element of a field, [1, C, I, J]."""
        _, C, I, J = truth_BCIJ.shape
        return np.broadcast_to(latitude_weights(I)[:, None], (1, C, I, J))

    def weighted_squares(self, x: torch.Tensor, truth: torch.Tensor, axis: DeviceMesh) -> torch.Tensor:
        """The weighted sum of squares over this device's features: [B, T, F/tp], [B, C, I, J] -> []."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        weight = to_tensor(self.weigh(truth), x.device.type).to(x.dtype)  # [1, C, I, J]
        weight, own = (split_to_tp(cut_patches(field, self.patch), axis, dim=2) for field in (weight, truth))
        return (weight * (x - own).square()).sum()


# --------------------------------------------------------------------------------------------------------- typed


class TypedLatitudeError(LatitudeError):
    """`redistribute` slices truth and weights to this device's features; their sum is Partial() until reduced."""

    def forward(self, x_BTF: DTensor, truth_BCIJ: DTensor) -> DTensor:
        x_BTF = x_BTF.to(torch.promote_types(x_BTF.dtype, torch.float32))
        weight_1CIJ = place(self.weigh(truth_BCIJ), self.axis, Replicate()).to(x_BTF.dtype)
        weight_1TF, truth_BTF = (
            cut_patches(field, self.patch).redistribute(placements=[self.plan.x]) for field in (weight_1CIJ, truth_BCIJ)
        )
        total = (weight_1TF * (x_BTF - truth_BTF).square()).sum()
        return total.redistribute(placements=[self.plan.y]) / truth_BCIJ.numel()


# ---------------------------------------------------------------------------------------------------------- auto


class AutoLatitudeError(TypedLatitudeError):
    """The same: `parallelize_module` places inputs and outputs of modules, not the intermediate values of a loss."""


# -------------------------------------------------------------------------------------------------------- manual


class ManualLatitudeError(LatitudeError):
    """`body` is the per-device code, on this device's features."""

    def forward(self, x_BTF: DTensor, truth_BCIJ: DTensor) -> DTensor:
        per_device = local_map(
            self.body,
            in_placements=([self.plan.x], [self.plan.inputs["truth"]]),
            out_placements=[self.plan.y],
            device_mesh=self.axis,
        )
        return per_device(x_BTF, truth_BCIJ)

    def body(self, x: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return reduce_from_tp(self.weighted_squares(x, truth, self.axis), self.axis) / truth.numel()


STYLES = {"auto": AutoLatitudeError, "typed": TypedLatitudeError, "manual": ManualLatitudeError}


def build(mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], patch: int) -> nn.Module:
    """The layer in one of the three styles; `state` is empty."""
    return STYLES[style](mesh, plan, patch)
