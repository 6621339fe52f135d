"""Linear layer on the grid: y = x w + b, with the weight split along both dims.

    B batch   S sequence   D features in   F features out   X by Y devices on the axes "x" and "y"

                       summa, cannon, gathered     stationary          stationary_exchanged
    x_BSD per device   [B/X, S, D/Y]               [B/Y, S, D/X]       [B/X, S, D/Y]
    w_DF per device    [D/X, F/Y]                  [D/X, F/Y]          [D/Y, F/X]
    b_F per device     [F/Y]                       [F/Y]               [F/X]
    y_BSF per device   [B/X, S, F/Y]               [B/X, S, F/Y]       [B/Y, S, F/X]

The product and its collectives are those of matmul.py with M = B S, K = D and N = F. The bias is the same for all
tokens, which are sharded over one axis, so its gradient is summed over that axis.

    backward         all-reduce db_F over x, payload F/Y; `stationary_exchanged`: over y, payload F/X

Several linears of the same x are computed as one product: each device concatenates its columns of their weights, and x
is sent once. (The concatenated global weight, with its columns in another order than in a checkpoint, is never formed.)

Where `stationary` and `stationary_exchanged` alternate, activations alternate between two layouts and no weight moves.

Sources: Optimus, https://arxiv.org/abs/2104.05343 (it keeps biases on one row of the grid and broadcasts
them); Pope et al., https://arxiv.org/abs/2211.05102, section 3.2.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import local_map

from torch_tp.collectives import copy_to_tp
from torch_tp.grid.product import Grid, grid_of, multiply
from torch_tp.layouts import Plan, place

# A placement for each mesh axis, x then y. PyTorch stores the weight as [out, in].
BLOCK, EXCHANGED = (Shard(0), Shard(2)), (Shard(2), Shard(0))
PARAMS = {"weight": (Shard(1), Shard(0)), "bias": (Replicate(), Shard(0))}
PARAMS_EXCHANGED = {"weight": (Shard(0), Shard(1)), "bias": (Shard(0), Replicate())}

PLANS = {
    "summa": Plan(x=BLOCK, y=BLOCK, params=PARAMS, algorithm="summa"),
    "cannon": Plan(x=BLOCK, y=BLOCK, params=PARAMS, algorithm="cannon"),
    "gathered": Plan(x=BLOCK, y=BLOCK, params=PARAMS, algorithm="gathered"),
    "stationary": Plan(x=EXCHANGED, y=BLOCK, params=PARAMS, algorithm="stationary"),
    "stationary_exchanged": Plan(x=BLOCK, y=EXCHANGED, params=PARAMS_EXCHANGED, algorithm="stationary"),
}

# By algorithm, the plans of two consecutive layers: into the hidden features and back.
PAIRS = {
    algorithm: (PLANS["stationary_exchanged" if algorithm == "stationary" else algorithm], PLANS[algorithm])
    for algorithm in ("summa", "cannon", "gathered", "stationary")
}

Affine = tuple[torch.Tensor, torch.Tensor | None]  # w as PyTorch stores it, and b


class GridLinear(nn.Module):
    """The parameters: DTensors, laid out as the plan says."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], panel: int = 0) -> None:
        super().__init__()
        self.mesh, self.plan, self.grid = mesh, plan, grid_of(mesh, plan, panel)
        self.weight = nn.Parameter(place(state["w"].T, mesh, plan.params["weight"]))
        self.bias = nn.Parameter(place(state["b"], mesh, plan.params["bias"])) if "b" in state else None
        self.placements = plan.params["weight"], None if self.bias is None else plan.params["bias"]


def side_by_side(parts: Sequence[Affine]) -> Affine:
    """This device's columns of several linears of the same x, concatenated; either all have a bias or none."""
    weights, biases = zip(*parts, strict=True)
    return torch.cat(weights), None if biases[0] is None else torch.cat(biases)


def affine(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, grid: Grid) -> torch.Tensor:
    """x w + b on one device, from its blocks of x [B/R, S, D/C], w^T [F/C, D/R] and b [F/C] (R, C: product.py)."""
    y = multiply(x, w.T, grid)
    return y if b is None else y + copy_to_tp(b, grid.rows)


# -------------------------------------------------------------------------------------------------------- manual


class ManualGridLinear(GridLinear):
    """The product, then this device's block of the bias."""

    def forward(self, x_BSD: DTensor) -> DTensor:
        per_device = local_map(
            self.body,
            in_placements=(self.plan.x, *self.placements),
            out_placements=list(self.plan.y),  # a tuple would mean several results
            device_mesh=self.mesh,
        )
        return per_device(x_BSD, self.weight, self.bias)

    def body(self, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        return affine(x, w, b, self.grid)


STYLES = {"manual": ManualGridLinear}


def build(mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], panel: int = 0) -> nn.Module:
    """The layer; `state` holds the global w [D, F] and, if the layer has one, b [F]; panel: of D, for summa."""
    return STYLES[style](mesh, plan, state, panel)
