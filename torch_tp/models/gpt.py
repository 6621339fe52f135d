"""GPT: y = the cross entropy of logits over the labels; embedding plus learned positions, L blocks, norm, tied head.

    B batch   S sequence   D features   V rows of the table   C positions, S <= C   L blocks   tp devices on axis "tp"

    h_BSD     = table[x] + positions[:S]
    h_BSD     = block_i(h_BSD)             i = 1 .. L, pre-norm, causal
    y         = cross_entropy(norm(h_BSD) table^T, labels)

    x_BS, labels_BS per device  [B, S]           ids, int64: no gradient
    table_VD per device         [V/tp, D]        one parameter of two layers: tied.py
    positions_CD per device     [C, D]           replicated; rows from S on have gradient 0
    h_BSD per device            [B, S, D]        under sequence_parallel [B, S/tp, D]
    logits_BSV per device       [B, S, V/tp]     never gathered
    y                           []

Dropout, active when a `step` is given, is that of GPT-2: on the input of the first block and, in each block, on the
attention probabilities and on the output of either sublayer. Each of these 3 L + 1 dropout layers has its own number in
its key: block i, from 0, has 3 i to 3 i + 2, and the input of the first block has 3 L. Nothing is sent.

                megatron                              sequence_parallel
    forward     1 + 2 L all-reduces of B*S*D,         1 + 2 L reduce-scatters and all-gathers of B*S*D,
                3 of B*S                              3 all-reduces of B*S
    backward    1 + 2 L all-reduces of B*S*D          1 + 2 L all-gathers and reduce-scatters of B*S*D,
                                                      an all-gather of S*D, 2 + 6 L all-reduces of D

Forward: the embedding, two per block, and the sums of the cross entropy. Backward: two per block, and dh of the head.
Parameter gradients need no collective.

Under sequence parallelism each all-reduce becomes a reduce-scatter and an all-gather, with the norms and residuals on
each device's tokens between the two. The gradients of the norms and of the biases after row-parallel products are then
sums over all devices' tokens. Each device has the gradient of its rows of the positions; these are gathered.

Sources: Radford et al. 2019, "Language models are unsupervised multitask learners"; Megatron-LM,
https://arxiv.org/abs/1909.08053, section 3; sequence parallelism, https://arxiv.org/abs/2205.05198, section 4.2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from torch_tp import block, cross_entropy, dropout, norm, tied
from torch_tp.layouts import Plan, child, place
from torch_tp.models.common import blocks_of, build_blocks, build_dropout, check_inputs, own_tokens
from torch_tp.state import check_plan, check_state, under

__all__ = ["PLANS", "STYLES", "Gpt", "Positions", "build", "check_inputs"]

PLANS = {
    plan: Plan(
        x=Replicate(),
        y=Replicate(),
        inputs={"labels": Replicate(), **dropout.STEP},
        children={
            "tied": tied.PLANS[table],
            "positions": Plan(x=norm.PLANS[normed].x, y=norm.PLANS[normed].y, params={"weight": Replicate()}),
            "dropout": dropout.PLANS[normed],
            "block": block.PLANS[plan],
            "norm": norm.PLANS[normed],
            "loss": cross_entropy.PLANS["vocab_parallel"],
        },
    )
    for plan, table, normed in (
        ("megatron", "vocab_parallel", "replicated"),
        ("sequence_parallel", "sequence_parallel", "sequence_parallel"),
    )
}


class Positions(nn.Module):
    """A learned vector per position, replicated; each device adds those of its tokens."""

    def __init__(self, mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.style, self.plan = style, plan
        self.weight = nn.Parameter(place(state["table"], mesh, plan.params["weight"]))

    def forward(self, h_BSD: DTensor) -> DTensor:
        S, C = h_BSD.shape[1], self.weight.shape[0]
        if S > C:
            raise ValueError(f"S={S} tokens, but the model has {C} positions: S <= {C} would work")
        rows_SD = self.weight[:S]
        return h_BSD + (own_tokens(rows_SD, 0, self.style) if self.plan.x == Shard(1) else rows_SD)


class Gpt(nn.Module):
    """The layers in the given style; what lies between them has the blocks' layout."""

    layers: ClassVar[Mapping[str, Any]] = {
        "tied": tied,
        "positions": Positions,
        "block": block,
        "norm": norm,
        "loss": cross_entropy,
    }

    def __init__(
        self,
        mesh: DeviceMesh,
        style: str,
        plan: Plan,
        state: Mapping[str, np.ndarray],
        num_ids: int,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__()
        plans, layers, normalisation = plan.children, self.layers, {"kind": options["norm_kind"], "eps": options["eps"]}
        self.tied = layers["tied"].build(mesh, style, plans["tied"], child(state, "tied"), num_ids)
        self.positions = layers["positions"](mesh, style, plans["positions"], child(state, "positions"))
        if "dropout" in plans:  # not on a grid
            self.drop = build_dropout(mesh, style, plans["dropout"], child(state, "blocks"), options)
        self.blocks = build_blocks(layers["block"], mesh, style, plans["block"], child(state, "blocks"), options)
        self.norm = layers["norm"].build(mesh, style, plans["norm"], child(state, "norm"), **normalisation)
        self.loss = layers["loss"].build(mesh, style, plans["loss"], {}, num_ids)

    def forward(self, x_BS: DTensor, labels_BS: DTensor, step: DTensor | None = None) -> DTensor:
        h_BSD = self.positions(self.tied.embed(x_BS))
        if step is not None:
            h_BSD = self.drop(h_BSD, step)
        for layer in self.blocks:
            h_BSD = layer(h_BSD, step)
        logits_BSV = self.tied.logits(self.norm(h_BSD))
        return self.loss(logits_BSV, labels_BS)


# The state by name, in sizes: state.py.
SHAPES = {**under("tied", tied.SHAPES), "positions.table": "C D", **under("norm", norm.SHAPES["layer_norm"])}

STYLES = {"auto": Gpt, "typed": Gpt, "manual": Gpt}


def build(
    mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], num_ids: int, **options: Any
) -> nn.Module:
    """The model in one of the three styles; `state`: those of tied, positions, blocks.0 .. blocks.{L-1}, and norm.

    num_ids: number of rows of the table and logits that are ids; the rest is padding. options: those of `block.build`.
    Raises ValueError as the layers' `build` do.
    """
    check_plan(plan, PLANS)
    heads = {"H": options["num_heads"], "K": options["num_kv_heads"]}
    check_state(state, SHAPES | blocks_of(state, options), heads)

    return STYLES[style](mesh, style, plan, state, num_ids, options)
