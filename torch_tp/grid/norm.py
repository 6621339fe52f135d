"""Layer norm and RMS norm on the grid: the features are sharded over y, so the statistics of a token are sums over y.

    B batch   S sequence   D features   X by Y devices on the axes "x" and "y"

    x_BSD per device   [B/X, S, D/Y]
    y_BSD per device   [B/X, S, D/Y]
    scale_D, b_D       [D/Y]

    layer norm         mean = Σ_D x / D,   var = Σ_D (x - mean)² / D,   y = (x - mean) / sqrt(var + eps) * scale + b
    RMS norm           the same with mean 0 and no b

                       layer norm                                    RMS norm
    forward            all-reduce y: Σ x and Σ (x - mean)²,          all-reduce y: Σ x²,
                       B/X S each                                    B/X S
    backward           all-reduce y: the gradients of both,          all-reduce y: its gradient, B/X S
                       B/X S each
                       all-reduce x: dscale and db, D/Y each         all-reduce x: dscale, D/Y

Each sum over y is used by all devices of the row, each for its own features, so its gradient is a sum over y again.
Computing Σ x and Σ x² together would save one all-reduce, but mean(x²) - mean² cancels where the mean
is large. The sums are in float32 for bfloat16. The gradients of scale and b are sums over tokens, which are sharded
over x.

Sources: Optimus, https://arxiv.org/abs/2104.05343; Ba et al., https://arxiv.org/abs/1607.06450; Zhang &
Sennrich, https://arxiv.org/abs/1910.07467.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import local_map

from torch_tp.collectives import copy_to_tp, reduce_from_tp
from torch_tp.grid.linear import BLOCK
from torch_tp.layouts import Plan, place

COLUMNS = (Replicate(), Shard(0))

PLANS = {
    "grid": Plan(x=BLOCK, y=BLOCK, params={"weight": COLUMNS, "bias": COLUMNS}),
}


def mean_over(x: torch.Tensor, axis: DeviceMesh) -> torch.Tensor:
    """The mean of every token over its features, which are sharded over the axis: [B, S, D/Y] -> [B, S, 1]."""
    total = reduce_from_tp(x.sum(-1, keepdim=True), axis)
    return copy_to_tp(total, axis) / (x.shape[-1] * axis.size())


def layer_norm(
    x: torch.Tensor, scale: torch.Tensor, b: torch.Tensor | None, eps: float, axis: DeviceMesh
) -> torch.Tensor:
    """Layer norm of every token, on this device's shard of its features."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - mean_over(wide, axis)
    y = centred * torch.rsqrt(mean_over(centred.square(), axis) + eps) * scale
    return (y if b is None else y + b).to(x.dtype)


def rms_norm(
    x: torch.Tensor, scale: torch.Tensor, b: torch.Tensor | None, eps: float, axis: DeviceMesh
) -> torch.Tensor:
    """RMS norm of every token, on this device's shard of its features; it has no b."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y = wide * torch.rsqrt(mean_over(wide.square(), axis) + eps) * scale
    return y.to(x.dtype)


NORMS = {"layer_norm": layer_norm, "rms_norm": rms_norm}


# -------------------------------------------------------------------------------------------------------- manual


class ManualGridNorm(nn.Module):
    """Per-device code; f over x on the parameters, as the tokens are sharded over x."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], kind: str, eps: float) -> None:
        super().__init__()
        self.mesh, self.plan, self.norm, self.eps = mesh, plan, NORMS[kind], eps
        self.weight = nn.Parameter(place(state["scale"], mesh, plan.params["weight"]))
        self.bias = nn.Parameter(place(state["b"], mesh, plan.params["bias"])) if "b" in state else None
        self.placements = plan.params["weight"], None if self.bias is None else plan.params["bias"]

    def forward(self, x_BSD: DTensor) -> DTensor:
        per_device = local_map(
            self.body,
            in_placements=(self.plan.x, *self.placements),
            out_placements=list(self.plan.y),
            device_mesh=self.mesh,
        )
        return per_device(x_BSD, self.weight, self.bias)

    def body(self, x: torch.Tensor, scale: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        scale = copy_to_tp(scale, self.mesh["x"])  # [D/Y]
        b = None if b is None else copy_to_tp(b, self.mesh["x"])  # [D/Y]
        return self.norm(x, scale, b, self.eps, self.mesh["y"])


STYLES = {"manual": ManualGridNorm}


def build(
    mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], kind: str, eps: float
) -> nn.Module:
    """The layer; `state`: scale [D] and, for a layer norm that has one, b [D]."""
    return STYLES[style](mesh, plan, state, kind, eps)
