"""ViT on a gridded field: patches as tokens, L blocks, norm, and a head that predicts a field or a class.

    B batch   C channels   I latitudes   J longitudes   P side of a patch   T = I/P * J/P tokens   F = C*P*P
    D features   L blocks   V classes, padded   tp devices on the axis "tp"

    h_BTD     = patches(x) w_embed + b_embed + positions
    h_BTD     = block_i(h_BTD)             i = 1 .. L, pre-norm, every token sees all
    field     y = latitude_error(norm(h_BTD) w_head + b_head, truth)
    classes   y = cross_entropy(mean_T norm(h_BTD) w_head + b_head, labels)

    x_BCIJ per device           [B, C, I, J]
    truth_BCIJ, labels_B        [B, C, I, J], [B] int64: data, no gradient
    w_embed_FD per device       [F, D]           replicated, as b_embed and positions [T, D]: a patch has few numbers
    h_BTD per device            [B, T, D]
    w_head per device           [D, F/tp] or [D, V/tp]      column-parallel
    head's output per device    [B, T, F/tp] or [B, 1, V/tp]      the field and the logits are never gathered
    y                           []

Dropout, active when a `step` is given, acts on the input of the first block and in each block as in GPT, with the same
numbers (gpt.py). `transformers` does the same; the paper omits the probabilities and adds the MLP's hidden features.

                                field                               classes
    forward                     2 L all-reduces of B*T*D,           2 L all-reduces of B*T*D,
                                1 of a scalar                       3 of B
    backward                    2 L + 1 all-reduces of B*T*D        2 L all-reduces of B*T*D, 1 of B*D

Two per block in either pass, those of the loss, and dh of the head. Parameter gradients need no collective.

Under sequence parallelism (`field_sequence_parallel`, `classes_sequence_parallel`) h is [B, T/tp, D]: each device has
its own patches, and every all-reduce of B*T*D above becomes a reduce-scatter and an all-gather.

                                field                               classes
    forward                     2 L reduce-scatters of B*T*D,       2 L reduce-scatters and all-gathers of B*T*D,
                                2 L + 1 all-gathers,                1 all-reduce of B*D: the mean of all tokens,
                                1 all-reduce of a scalar            3 of B
    backward                    2 L all-gathers of B*T*D,           2 L all-gathers and reduce-scatters of B*T*D,
                                2 L + 1 reduce-scatters             1 all-reduce of B*D
    backward, both              all-gathers of T*D (positions) and of B*T*F (dx); all-reduces of F*D and D (embedding),
                                2 of D (last norm) and 6 of D per block

Sources: Dosovitskiy et al., https://arxiv.org/abs/2010.11929 (mean pooling: appendix D.3); Megatron-LM,
https://arxiv.org/abs/1909.08053, section 3; sequence parallelism, https://arxiv.org/abs/2205.05198, section 4.2.2.
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

from torch_tp import block, cross_entropy, dropout, latitude_error, linear, norm
from torch_tp.collectives import reduce_from_tp
from torch_tp.embedding import check_tokens
from torch_tp.latitude_error import check_patch, cut_patches
from torch_tp.layouts import Plan, child, placements_of
from torch_tp.models import bert, gpt
from torch_tp.models.common import blocks_of, build_blocks, build_dropout, own_tokens
from torch_tp.state import check_plan, check_state, under


def layers_of(plan: str) -> dict[str, Plan]:
    """The plans of the layers, given that of the blocks."""
    return {
        "embed": bert.PLANS[plan].children["dense"],
        "positions": gpt.PLANS[plan].children["positions"],
        "dropout": gpt.PLANS[plan].children["dropout"],
        "block": block.PLANS[plan],
        "norm": gpt.PLANS[plan].children["norm"],
    }


PLANS = {
    f"field{suffix}": Plan(
        x=Replicate(),
        y=Replicate(),
        inputs={"truth": Replicate(), **dropout.STEP},
        constants=("truth",),
        children={
            **layers_of(plan),
            "head": linear.PLANS[head],
            "loss": latitude_error.PLANS["feature_parallel"],
        },
    )
    for plan, suffix, head in (
        ("megatron", "", "column_parallel"),
        ("sequence_parallel", "_sequence_parallel", "column_sequence_parallel"),
    )
} | {
    f"classes{suffix}": Plan(
        x=Replicate(),
        y=Replicate(),
        inputs={"labels": Replicate(), **dropout.STEP},
        children={
            **layers_of(plan),
            "head": linear.PLANS["column_parallel"],  # on the mean over tokens, which is replicated
            "loss": cross_entropy.PLANS["vocab_parallel"],
        },
    )
    for plan, suffix in (("megatron", ""), ("sequence_parallel", "_sequence_parallel"))
}


def check_inputs(inputs: Mapping[str, np.ndarray], patch: int, num_classes: int | None = None, **options: Any) -> None:
    """Raises ValueError for a grid that the patches do not tile, or a truth, labels or step that do not fit."""
    x = inputs["x"]
    if x.ndim != 4:
        raise ValueError(f"x of shape {list(x.shape)}: expected [B, C, I, J], a batch of fields")
    check_patch(*x.shape[2:], patch)
    if "step" in inputs:
        dropout.check_inputs(inputs)
    if num_classes is not None:
        cross_entropy.check_inputs(inputs, num_classes)
    elif inputs["truth"].shape != x.shape:
        raise ValueError(f"truth of shape {list(inputs['truth'].shape)}: expected that of x, {list(x.shape)}")


class Vit(nn.Module):
    """The layers in the given style up to the last norm; what lies between them has the blocks' layout."""

    layers: ClassVar[Mapping[str, Any]] = {
        "embed": bert.DENSE,
        "positions": gpt.Positions,
        "block": block,
        "norm": norm,
        "head": linear,
    }

    def __init__(
        self,
        mesh: DeviceMesh,
        style: str,
        plan: Plan,
        state: Mapping[str, np.ndarray],
        patch: int,
        loss: nn.Module,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.style, self.patch, self.layout = style, patch, placements_of(plan.children["block"].y)
        self.axis, self.is_shared_out = mesh, self.layout == (Shard(1),)
        plans, layers, normalisation = plan.children, self.layers, {"kind": options["norm_kind"], "eps": options["eps"]}
        self.embed = layers["embed"][style](mesh, plans["embed"], child(state, "embed"))
        self.positions = layers["positions"](mesh, style, plans["positions"], child(state, "positions"))
        if "dropout" in plans:  # not on a grid
            self.drop = build_dropout(mesh, style, plans["dropout"], child(state, "blocks"), options)
        self.blocks = build_blocks(layers["block"], mesh, style, plans["block"], child(state, "blocks"), options)
        self.norm = layers["norm"].build(mesh, style, plans["norm"], child(state, "norm"), **normalisation)
        self.head = layers["head"].build(mesh, style, plans["head"], child(state, "head"))
        self.loss = loss

    def features(self, x_BCIJ: DTensor, step: DTensor | None) -> DTensor:
        """norm(h_BTD). Raises ValueError if the numbers of patches and positions differ."""
        patches_BTF, size = cut_patches(x_BCIJ, self.patch), self.positions.weight.shape[0]
        if patches_BTF.shape[1] != size:
            raise ValueError(f"a grid of {patches_BTF.shape[1]} patches, but the model has {size} positions")
        if self.is_shared_out:
            check_tokens(size, self.axis.size())
            patches_BTF = own_tokens(patches_BTF, 1, self.style)
        h_BTD = self.positions(self.embed(patches_BTF))
        if step is not None:
            h_BTD = self.drop(h_BTD, step)
        for layer in self.blocks:
            h_BTD = layer(h_BTD, step)
        return self.norm(h_BTD)


class FieldVit(Vit):
    """Predicts each patch of the field from the features of its token."""

    def forward(self, x_BCIJ: DTensor, truth_BCIJ: DTensor, step: DTensor | None = None) -> DTensor:
        # A no-op for a replicated h; in the backward pass it all-reduces the partial gradients of h.
        h_BTD = self.features(x_BCIJ, step).redistribute(placements=self.layout)
        return self.loss(self.head(h_BTD), truth_BCIJ)


class ClassVit(Vit):
    """Predicts the class from the mean of all tokens' features, as a sequence of one token."""

    def forward(self, x_BCIJ: DTensor, labels_B: DTensor, step: DTensor | None = None) -> DTensor:
        h_BTD = self.features(x_BCIJ, step)
        if self.is_shared_out:
            h_B1D = self.mean_of_all(h_BTD)
        else:
            h_B1D = h_BTD.mean(1, keepdim=True).redistribute(placements=self.layout)
        return self.loss(self.head(h_B1D), labels_B[:, None])

    def mean_of_all(self, h_BTD: DTensor) -> DTensor:
        """The mean over the tokens of all devices, [B, 1, D]."""
        if self.style == "manual":
            mean = local_map(
                self.body,
                in_placements=(self.layout,),
                out_placements=[Replicate()],
                device_mesh=self.axis,
            )
            h_B1D = mean(h_BTD)
        else:
            h_B1D = h_BTD.sum(1, keepdim=True).redistribute(placements=[Replicate()]) / h_BTD.shape[1]
        # A no-op in the forward pass; in the backward pass it all-reduces the partial gradients of the one token.
        return h_B1D.redistribute(placements=[Replicate()])

    def body(self, h: torch.Tensor) -> torch.Tensor:
        total = reduce_from_tp(h.sum(1, keepdim=True), self.axis)  # [B, 1, D] of [B, T/tp, D]
        return total / (h.shape[1] * self.axis.size())


# The state by name, in sizes: state.py.
SHAPES = {
    **{"embed.w": "Q D", "embed.b": "D", "positions.table": "T D"},
    **under("norm", norm.SHAPES["layer_norm"]),
    **{"head.w": "D R", "head.b?": "R"},
}

STYLES = {style: {"field": FieldVit, "classes": ClassVit} for style in ("auto", "typed", "manual")}


def build(
    mesh: DeviceMesh,
    style: str,
    plan: Plan,
    state: Mapping[str, np.ndarray],
    patch: int,
    num_classes: int | None = None,
    **options: Any,
) -> nn.Module:
    """The model in one of the three styles; `state`: those of embed, positions, blocks.0 .. blocks.{L-1}, norm, head.

    patch: P. num_classes: logits that are classes, the rest is padding; None for the plan "field". options: those of
    `block.build`. Raises ValueError as the layers' `build` do.
    """
    check_plan(plan, PLANS)
    heads = {"H": options["num_heads"], "K": options["num_kv_heads"]}
    check_state(state, SHAPES | blocks_of(state, options), heads)

    if num_classes is None:
        loss = latitude_error.build(mesh, style, plan.children["loss"], {}, patch)
        return STYLES[style]["field"](mesh, style, plan, state, patch, loss, options)
    loss = cross_entropy.build(mesh, style, plan.children["loss"], {}, num_classes)
    return STYLES[style]["classes"](mesh, style, plan, state, patch, loss, options)
