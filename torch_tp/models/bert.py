"""BERT: y = the cross entropy of logits over the labels of masked tokens; an encoder with a tied head.

    B batch   S sequence   D features   V rows of the table   C positions, S <= C   L blocks   tp devices on axis "tp"

    h_BSD     = norm(table[x] + positions[:S])
    h_BSD     = block_i(h_BSD)             i = 1 .. L, post-norm, every token sees all
    h_BSD     = head_norm(act(h_BSD w_head + b_head))
    y         = cross_entropy(h_BSD table^T + b_vocab, labels)

    x_BS, labels_BS per device  [B, S]           ids, int64: no gradient; labels of -100 where nothing was masked
    table_VD, b_vocab_V         [V/tp, D], [V/tp]
    positions_CD per device     [C, D]           replicated, as w_head_DD [D, D], b_head and the norms
    h_BSD per device            [B, S, D]        under sequence_parallel [B, S/tp, D]
    logits_BSV per device       [B, S, V/tp]     never gathered
    y                           []

Dropout, active when a `step` is given, acts on the input of the first block, after the norm, and in each block as in
GPT, with the same numbers (gpt.py). Nothing is sent.

                megatron                              sequence_parallel
    forward     1 + 2 L all-reduces of B*S*D,         1 + 2 L reduce-scatters and all-gathers of B*S*D,
                3 of B*S                              3 all-reduces of B*S
    backward    1 + 2 L all-reduces of B*S*D          1 + 2 L all-gathers and reduce-scatters of B*S*D,
                                                      an all-gather of S*D, 5 + 6 L all-reduces of D, one of D*D

As for GPT. Every device computes the product with w_head for all tokens, since sharding it would take two more
all-reduces. Under sequence parallelism each device does so for its own tokens, and the gradients of w_head, b_head and
the head's norm are all-reduced. Inputs have one segment: BERT's vector of the first segment is part of the positions.

Sources: Devlin et al., https://arxiv.org/abs/1810.04805; Megatron-LM, https://arxiv.org/abs/1909.08053, section 3;
sequence parallelism, https://arxiv.org/abs/2205.05198, section 4.2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import local_map
from torch.nn.functional import linear

from torch_tp import block, cross_entropy, dropout, mlp, norm, tied
from torch_tp.collectives import copy_to_tp
from torch_tp.layouts import Plan, child, place
from torch_tp.models import gpt
from torch_tp.models.common import blocks_of, build_blocks, build_dropout, check_inputs
from torch_tp.state import check_plan, check_state, under

__all__ = ["DENSE", "PLANS", "STYLES", "Bert", "Dense", "ManualDense", "VocabBias", "build", "check_inputs"]

REPLICATED = {"weight": Replicate(), "bias": Replicate()}

PLANS = {
    plan: Plan(
        x=Replicate(),
        y=Replicate(),
        inputs={"labels": Replicate(), **dropout.STEP},
        children={
            "tied": tied.PLANS[table],
            "positions": gpt.PLANS[plan].children["positions"],
            "dropout": dropout.PLANS[normed],
            "block": block.PLANS[plan],
            "norm": norm.PLANS[normed],
            "dense": Plan(
                x=norm.PLANS[normed].x, y=norm.PLANS[normed].y, params={"weight": Replicate(), "bias": Replicate()}
            ),
            "vocab": Plan(x=Shard(2), y=Shard(2), params={"bias": Shard(0)}),
            "loss": cross_entropy.PLANS["vocab_parallel"],
        },
    )
    for plan, table, normed in (
        ("megatron", "vocab_parallel", "replicated"),
        ("sequence_parallel", "sequence_parallel", "sequence_parallel"),
    )
}


class Dense(nn.Module):
    """A linear with replicated parameters, for all tokens or for this device's."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.axis, self.plan = mesh, plan
        self.weight = nn.Parameter(place(state["w"].T, mesh, plan.params["weight"]))
        self.bias = nn.Parameter(place(state["b"], mesh, plan.params["bias"]))

    def forward(self, h_BSD: DTensor) -> DTensor:
        # A no-op in the forward pass; in the backward pass it all-reduces gradients that are sums over tokens.
        w, b = (param.redistribute(placements=[Replicate()]) for param in (self.weight, self.bias))
        return linear(h_BSD, w, b)


class ManualDense(Dense):
    """Per-device code: f on the parameters if the tokens are sharded."""

    def forward(self, h_BSD: DTensor) -> DTensor:
        per_device = local_map(
            self.body,
            in_placements=([self.plan.x], [self.plan.params["weight"]], [self.plan.params["bias"]]),
            out_placements=[self.plan.y],
            device_mesh=self.axis,
        )
        return per_device(h_BSD, self.weight, self.bias)

    def body(self, h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if self.plan.x == Shard(1):  # h: [B, S/tp, D]
            w, b = copy_to_tp(w, self.axis), copy_to_tp(b, self.axis)  # [D, D], [D]
        return linear(h, w, b)


DENSE = {"auto": Dense, "typed": Dense, "manual": ManualDense}


class VocabBias(nn.Module):
    """A bias for the logits, sharded as they are, so that adding it sends nothing in any style."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.bias = nn.Parameter(place(state["b"], mesh, plan.params["bias"]))

    def forward(self, logits_BSV: DTensor) -> DTensor:
        return logits_BSV + self.bias


class Bert(nn.Module):
    """The layers in the given style; what lies between them has the blocks' layout."""

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
        plans, normalisation = plan.children, {"kind": options["norm_kind"], "eps": options["eps"]}
        self.tied = tied.build(mesh, style, plans["tied"], child(state, "tied"), num_ids)
        self.positions = gpt.Positions(mesh, style, plans["positions"], child(state, "positions"))
        self.norm = norm.build(mesh, style, plans["norm"], child(state, "norm"), **normalisation)
        self.drop = build_dropout(mesh, style, plans["dropout"], child(state, "blocks"), options)
        self.blocks = build_blocks(block, mesh, style, plans["block"], child(state, "blocks"), options)
        self.head = DENSE[style](mesh, plans["dense"], child(state, "head"))
        self.act = mlp.ACTIVATIONS[options["activation"]]
        self.head_norm = norm.build(mesh, style, plans["norm"], child(state, "head_norm"), **normalisation)
        self.vocab = VocabBias(mesh, plans["vocab"], child(state, "vocab"))
        self.loss = cross_entropy.build(mesh, style, plans["loss"], {}, num_ids)

    def forward(self, x_BS: DTensor, labels_BS: DTensor, step: DTensor | None = None) -> DTensor:
        h_BSD = self.drop(self.norm(self.positions(self.tied.embed(x_BS))), step)
        for layer in self.blocks:
            h_BSD = layer(h_BSD, step)
        h_BSD = self.head_norm(self.act(self.head(h_BSD)))
        return self.loss(self.vocab(self.tied.logits(h_BSD)), labels_BS)


# The state by name, in sizes: state.py.
SHAPES = {
    **gpt.SHAPES,
    **{"head.w": "D D", "head.b": "D", "vocab.b": "V"},
    **under("head_norm", norm.SHAPES["layer_norm"]),
}

STYLES = {"auto": Bert, "typed": Bert, "manual": Bert}


def build(
    mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], num_ids: int, **options: Any
) -> nn.Module:
    """The model in one of the three styles; `state`: those of tied, positions, norm, blocks.0 .. blocks.{L-1},
    head, head_norm, vocab.

    num_ids: number of rows of the table and logits that are ids; the rest is padding. options: those of `block.build`.
    Raises ValueError as the layers' `build` do.
    """
    check_plan(plan, PLANS)
    heads = {"H": options["num_heads"], "K": options["num_kv_heads"]}
    check_state(state, SHAPES | blocks_of(state, options), heads)

    return STYLES[style](mesh, style, plan, state, num_ids, options)
