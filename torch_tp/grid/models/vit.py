"""ViT on the grid: models/vit.py built from the grid's layers; no device ever holds a whole residual.

    B batch   C channels   I latitudes   J longitudes   P side of a patch   T = I/P * J/P tokens   F = C*P*P
    D features   V classes, padded   X by Y devices on the axes "x" and "y"

                            summa                             stationary
    x_BCIJ per device       [B/X, C, I, J]                    [B/X, C, I, J]
    truth, labels           [B/X, C, I, J], [B/X]             [B/Y, C, I, J], [B/Y]     data, no gradient
    w_embed_FD per device   [F/X, D/Y]                        [F/X, D/Y]
    h_BTD per device        [B/X, T, D/Y]                     [B/X, T, D/Y]
    w_head per device       [D/X, F/Y] or [D/X, V/Y]          [D/Y, F/X] or [D/Y, V/X]
    head's output           [B/X, T, F/Y] or [B/X, 1, V/Y]    [B/Y, T, F/X] or [B/Y, 1, V/X]      never gathered
    y                       []                                []

The collectives are those of its layers, and for the embedding of patches, which are replicated over y,

    forward               all-gather x: w_embed, F D/Y
    backward              reduce-scatter x: dw_embed, F D/Y; all-reduce x: db_embed, D/Y; all-reduce y: dx, B/X T F

(no dx in training). Since every device already has its whole patches, only w is gathered.

Sources: Optimus, https://arxiv.org/abs/2104.05343, and those of models/vit.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import local_map
from torch.nn.functional import linear

from torch_tp.collectives import copy_to_tp, gather_from_sp
from torch_tp.grid import block, cross_entropy, latitude_error, norm
from torch_tp.grid import linear as grid_linear
from torch_tp.grid.embedding import POSITIONS, GridPositions
from torch_tp.layouts import Plan, place
from torch_tp.models import vit
from torch_tp.models.vit import check_inputs

__all__ = ["PLANS", "STYLES", "GridClassVit", "GridFieldVit", "PatchEmbedding", "build", "check_inputs"]

PATCHES = Plan(x=(Shard(0), Replicate()), y=grid_linear.BLOCK, params=grid_linear.PARAMS)

PLANS = {
    f"{task}_{algorithm}": Plan(
        x=PATCHES.x,
        y=loss.y,
        inputs=loss.inputs,
        constants=loss.constants,
        children={
            "embed": PATCHES,
            "positions": POSITIONS,
            "block": block.PLANS[algorithm],
            "norm": norm.PLANS["grid"],
            "head": grid_linear.PAIRS[algorithm][0],
            "loss": loss,
        },
        algorithm=algorithm,
    )
    for task, losses in (("field", latitude_error.PLANS), ("classes", cross_entropy.PLANS))
    for algorithm, loss in (("summa", losses["grid"]), ("stationary", losses["exchanged"]))
}


class PatchEmbedding(nn.Module):
    """A linear of patches that are whole on each device, for which this device's columns of the weight are gathered."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.mesh, self.plan = mesh, plan
        self.weight = nn.Parameter(place(state["w"].T, mesh, plan.params["weight"]))
        self.bias = nn.Parameter(place(state["b"], mesh, plan.params["bias"]))

    def forward(self, patches_BTF: DTensor) -> DTensor:
        per_device = local_map(
            self.body,
            in_placements=(self.plan.x, self.plan.params["weight"], self.plan.params["bias"]),
            out_placements=list(self.plan.y),
            device_mesh=self.mesh,
        )
        return per_device(patches_BTF, self.weight, self.bias)

    def body(self, patches: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        patches = copy_to_tp(patches, self.mesh["y"])  # [B/X, T, F]
        w = gather_from_sp(w, self.mesh["x"], dim=1)  # [D/Y, F]
        return linear(patches, w, copy_to_tp(b, self.mesh["x"]))  # [B/X, T, D/Y]


LAYERS: Mapping[str, Any] = {
    "embed": {"manual": PatchEmbedding},
    "positions": GridPositions,
    "block": block,
    "norm": norm,
    "head": grid_linear,
}


class GridFieldVit(vit.FieldVit):
    """Every token's features give its patch of the field."""

    layers: ClassVar[Mapping[str, Any]] = LAYERS


class GridClassVit(vit.ClassVit):
    """The mean of all tokens' features gives the class."""

    layers: ClassVar[Mapping[str, Any]] = LAYERS


STYLES = {"manual": {"field": GridFieldVit, "classes": GridClassVit}}


def build(
    mesh: DeviceMesh,
    style: str,
    plan: Plan,
    state: Mapping[str, np.ndarray],
    patch: int,
    num_classes: int | None = None,
    **options: Any,
) -> nn.Module:
    """The model; `state` and options: those of `models.vit.build`. Raises ValueError as the layers' `build` do."""
    if num_classes is None:
        loss = latitude_error.build(mesh, style, plan.children["loss"], {}, patch)
        return STYLES[style]["field"](mesh, style, plan, state, patch, loss, options)
    loss = cross_entropy.build(mesh, style, plan.children["loss"], {}, num_classes)
    return STYLES[style]["classes"](mesh, style, plan, state, patch, loss, options)
