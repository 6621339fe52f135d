"""Llama: y = the cross entropy of logits over the labels; embedding, L blocks, norm, head.

    B batch   S sequence   D features   V rows of the table, and logits   L blocks   tp devices on the axis "tp"

    h_BSD     = table[x]
    h_BSD     = block_i(h_BSD)             i = 1 .. L: RMS norm, grouped-query attention with RoPE, gated MLP
    y         = cross_entropy(norm(h_BSD) w_head, labels)

    x_BS, labels_BS per device  [B, S]           ids, int64: no gradient
    table_VD per device         [V/tp, D]
    h_BSD per device            [B, S, D]        under sequence_parallel [B, S/tp, D]
    w_head_DV per device        [D, V/tp]        column-parallel
    logits_BSV per device       [B, S, V/tp]     never gathered
    y                           []

                megatron                              sequence_parallel
    forward     1 + 2 L all-reduces of B*S*D,         1 + 2 L reduce-scatters and all-gathers of B*S*D,
                3 of B*S                              3 all-reduces of B*S
    backward    1 + 2 L all-reduces of B*S*D          1 + 2 L all-gathers and reduce-scatters of B*S*D,
                                                      1 + 2 L all-reduces of D

As for GPT. Forward: the embedding, two per block, and the sums of the cross entropy. Backward: two per block, and dh of
the head. Under sequence parallelism each all-reduce becomes a reduce-scatter and an all-gather, with the norms and
residuals on each device's tokens between the two; the gradients of the norms' scales are sums over all devices' tokens.
Head and table are separate parameters here; Llama 3.2 1B and 3B tie them, as gpt.py does.

Sources: Touvron et al., https://arxiv.org/abs/2302.13971; Megatron-LM, https://arxiv.org/abs/1909.08053, section 3;
sequence parallelism, https://arxiv.org/abs/2205.05198, section 4.2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from torch_tp import block, cross_entropy, embedding, linear, norm
from torch_tp.layouts import Plan, child
from torch_tp.models.common import blocks_of, build_blocks, check_inputs
from torch_tp.state import check_plan, check_state, under

__all__ = ["PLANS", "STYLES", "Llama", "build", "check_inputs"]

PLANS = {
    plan: Plan(
        x=Replicate(),
        y=Replicate(),
        inputs={"labels": Replicate()},
        children={
            "embed": embedding.PLANS[embed],
            "block": block.PLANS[plan],
            "norm": norm.PLANS[normed],
            "head": linear.PLANS[head],
            "loss": cross_entropy.PLANS["vocab_parallel"],
        },
    )
    for plan, embed, normed, head in (
        ("megatron", "vocab_parallel", "replicated", "column_parallel"),
        ("sequence_parallel", "sequence_parallel", "sequence_parallel", "column_sequence_parallel"),
    )
}


class Llama(nn.Module):
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
        self.block_layout = plan.children["block"].y
        plans, normalisation = plan.children, {"kind": options["norm_kind"], "eps": options["eps"]}
        self.embed = embedding.build(mesh, style, plans["embed"], child(state, "embed"), num_ids)
        self.blocks = build_blocks(block, mesh, style, plans["block"], child(state, "blocks"), options)
        self.norm = norm.build(mesh, style, plans["norm"], child(state, "norm"), **normalisation)
        self.head = linear.build(mesh, style, plans["head"], child(state, "head"))
        self.loss = cross_entropy.build(mesh, style, plans["loss"], {}, num_ids)

    def forward(self, x_BS: DTensor, labels_BS: DTensor) -> DTensor:
        h_BSD = self.embed(x_BS)
        for layer in self.blocks:
            h_BSD = layer(h_BSD)
        # A no-op for a replicated h; in the backward pass it all-reduces the partial gradients of h.
        h_BSD = self.norm(h_BSD).redistribute(placements=[self.block_layout])
        return self.loss(self.head(h_BSD), labels_BS)


# The state by name, in sizes: state.py.
SHAPES = {**under("embed", embedding.SHAPES), **under("norm", norm.SHAPES["rms_norm"]), "head.w": "D V"}

STYLES = {"auto": Llama, "typed": Llama, "manual": Llama}


def build(
    mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], num_ids: int, **options: Any
) -> nn.Module:
    """The model in one of the three styles; `state`: those of embed, blocks.0 .. blocks.{L-1}, norm, head.

    num_ids: number of rows of the table and logits that are ids; the rest is padding. options: those of `block.build`.
    Raises ValueError as the layers' `build` do, and for a drop_rate: Llama has no dropout.
    """
    check_plan(plan, PLANS)
    if rate := options.get("drop_rate"):
        raise ValueError(f"drop_rate={rate}: Llama has no dropout; 0 would work")
    heads = {"H": options["num_heads"], "K": options["num_kv_heads"]}
    check_state(state, SHAPES | blocks_of(state, options), heads)

    return STYLES[style](mesh, style, plan, state, num_ids, options)
