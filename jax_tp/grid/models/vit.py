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

import jax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import copy_to_tp, gather_from_sp, map_shards
from jax_tp.grid import block, cross_entropy, latitude_error, norm
from jax_tp.grid import linear as grid_linear
from jax_tp.grid.embedding import POSITIONS, GridPositions
from jax_tp.layouts import Plan, State, place
from jax_tp.linear import linear
from jax_tp.models import vit
from jax_tp.models.vit import check_inputs

__all__ = ["PLANS", "STYLES", "GridClassVit", "GridFieldVit", "PatchEmbedding", "build", "check_inputs"]

PATCHES = Plan(x=P("x", None, None), y=grid_linear.BLOCK, params=grid_linear.PARAMS)

PLANS = {
    f"{task}_{algorithm}": Plan(
        x=P("x", None, None, None),
        y=loss.y,
        inputs={name: P(spec[0]) for name, spec in loss.inputs.items()},  # labels have no tokens here
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


class PatchEmbedding(nnx.Module):
    """A linear of patches that are whole on each device, for which this device's columns of the weight are gathered."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State) -> None:
        self.plan = plan
        self.kernel = nnx.Param(place(state["w"], mesh, plan.params["kernel"]))
        self.bias = nnx.Param(place(state["b"], mesh, plan.params["bias"]))

    def __call__(self, patches_BTF: jax.Array) -> jax.Array:
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, self.plan.params["kernel"], self.plan.params["bias"]),
            out_specs=self.plan.y,
        )
        return per_device(patches_BTF, self.kernel[...], self.bias[...])

    def body(self, patches: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
        patches = copy_to_tp(patches, "y")  # [B/X, T, F]
        w = gather_from_sp(w, "x", dim=0)  # [F, D/Y]
        return linear(patches, w, copy_to_tp(b, "x"))  # [B/X, T, D/Y]


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
    mesh: Mesh,
    style: str,
    plan: Plan,
    state: State,
    patch: int,
    num_classes: int | None = None,
    **options: Any,
) -> nnx.Module:
    """The model; `state` and options: those of `models.vit.build`. Raises ValueError as the layers' `build` do."""
    if num_classes is None:
        loss = latitude_error.build(mesh, style, plan.children["loss"], {}, patch)
        return STYLES[style]["field"](mesh, style, plan, state, patch, loss, options)
    loss = cross_entropy.build(mesh, style, plan.children["loss"], {}, num_classes)
    return STYLES[style]["classes"](mesh, style, plan, state, patch, loss, options)
