"""Attention on the grid: y = (softmax(q k^T / sqrt(E)) v) w_o + b_o; the batch is sharded over x, the heads over y.

    B batch   S sequence   D features   H heads of E features, K key heads   X by Y devices on the axes "x" and "y"

                              summa, cannon, gathered     stationary
    x_BSD per device          [B/X, S, D/Y]               [B/X, S, D/Y]
    w_q per device            [D/X, H/Y*E]                [D/Y, H/X*E]
    w_k, w_v per device       [D/X, K/Y*E]                [D/Y, K/X*E]
    q, k, v per device        [B/X, S, H/Y*E] ...         [B/Y, S, H/X*E] ...
    w_o per device            [H*E/X, D/Y]                [H*E/X, D/Y]
    y_BSD per device          [B/X, S, D/Y]               [B/X, S, D/Y]

Sequences and heads are independent of each other, so nothing is sent between the projections: the collectives are those
of two linears (linear.py), from D to (H + 2 K) E features and from H E to D. The projections to q, k and v are a single
product with the three weights side by side, so x and its gradient are sent once. Y (in `stationary`, X) must divide K.

Sources: Optimus, https://arxiv.org/abs/2104.05343; GQA, https://arxiv.org/abs/2305.13245.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import local_map

from torch_tp.attention import Heads, attend, check_heads
from torch_tp.grid.linear import BLOCK, PAIRS, GridLinear, affine, side_by_side
from torch_tp.layouts import Plan, child

PLANS = {
    algorithm: Plan(x=BLOCK, y=BLOCK, children={"q": into, "k": into, "v": into, "o": out}, algorithm=algorithm)
    for algorithm, (into, out) in PAIRS.items()
}


# -------------------------------------------------------------------------------------------------------- manual


class ManualGridAttention(nn.Module):
    """Per-device code for the whole layer; each device has whole heads of whole sequences."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], heads: Heads, panel: int) -> None:
        super().__init__()
        self.mesh, self.plan, self.heads = mesh, plan, heads
        self.q = GridLinear(mesh, plan.children["q"], child(state, "q"), panel)
        self.k = GridLinear(mesh, plan.children["k"], child(state, "k"), panel)
        self.v = GridLinear(mesh, plan.children["v"], child(state, "v"), panel)
        self.o = GridLinear(mesh, plan.children["o"], child(state, "o"), panel)

    def forward(self, x_BSD: DTensor) -> DTensor:
        linears = self.q, self.k, self.v, self.o
        per_device = local_map(
            self.body,
            in_placements=(self.plan.x, *(placement for part in linears for placement in part.placements)),
            out_placements=list(self.plan.y),
            device_mesh=self.mesh,
        )
        return per_device(x_BSD, *(parameter for part in linears for parameter in (part.weight, part.bias)))

    def body(self, x: torch.Tensor, *params: torch.Tensor | None) -> torch.Tensor:
        *into, w_o, b_o = params
        sizes = [w.shape[0] for w in into[::2]]  # H/C*E, K/C*E, K/C*E
        w, b = side_by_side(list(zip(into[::2], into[1::2], strict=True)))
        q, k, v = affine(x, w, b, self.q.grid).split(sizes, -1)  # [B/R, S, ...]
        return affine(attend(q, k, v, self.heads), w_o, b_o, self.o.grid)


STYLES = {"manual": ManualGridAttention}


def build(
    mesh: DeviceMesh,
    style: str,
    plan: Plan,
    state: Mapping[str, np.ndarray],
    num_heads: int,
    num_kv_heads: int,
    causal: bool = False,
    rope_theta: float | None = None,
    panel: int = 0,
) -> nn.Module:
    """The layer; `state`: the global q.w [D, H*E], k.w, v.w [D, K*E], o.w [H*E, D], biases; panel: for summa.

    Raises ValueError if the axis that shards the heads does not divide them.
    """
    axis = "x" if plan.algorithm == "stationary" else "y"
    check_heads(num_heads, num_kv_heads, mesh[axis].size(), axis)
    size, group = state["o.w"].shape[0] // num_heads, num_heads // num_kv_heads
    return STYLES[style](mesh, plan, state, Heads(size, group, causal, rope_theta), panel)
