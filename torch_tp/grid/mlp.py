"""MLP on the grid: y = act(x w_up + b_up) w_down + b_down; gated: y = (silu(x w_gate + b_gate) * (x w_up + b_up)) ...

    B batch   S sequence   D features   F hidden features   X by Y devices on the axes "x" and "y"

                              summa, cannon, gathered     stationary
    x_BSD per device          [B/X, S, D/Y]               [B/X, S, D/Y]
    w_up, w_gate per device   [D/X, F/Y]                  [D/Y, F/X]
    h_BSF per device          [B/X, S, F/Y]               [B/Y, S, F/X]
    w_down per device         [F/X, D/Y]                  [F/X, D/Y]
    y_BSD per device          [B/X, S, D/Y]               [B/X, S, D/Y]

Two linears (linear.py), whose collectives are the only ones: the activation is elementwise. Gate and up are a single
product with the two weights side by side, so x is sent once for both.

Sources: Optimus, https://arxiv.org/abs/2104.05343; Shazeer, https://arxiv.org/abs/2002.05202.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import local_map

from torch_tp.grid.linear import BLOCK, PAIRS, GridLinear, affine, side_by_side
from torch_tp.layouts import Plan, child
from torch_tp.mlp import ACTIVATIONS
from torch_tp.swiglu import gated

PLANS = {
    algorithm: Plan(x=BLOCK, y=BLOCK, children={"gate": into, "up": into, "down": out}, algorithm=algorithm)
    for algorithm, (into, out) in PAIRS.items()
}


# -------------------------------------------------------------------------------------------------------- manual


class ManualGridMlp(nn.Module):
    """Per-device code for the whole MLP; it is gated if the state has a gate."""

    def __init__(
        self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], activation: str, panel: int
    ) -> None:
        super().__init__()
        self.mesh, self.plan = mesh, plan
        self.is_gated, self.act = activation == "swiglu", ACTIVATIONS.get(activation)
        if self.is_gated:
            self.gate = GridLinear(mesh, plan.children["gate"], child(state, "gate"), panel)
        self.up = GridLinear(mesh, plan.children["up"], child(state, "up"), panel)
        self.down = GridLinear(mesh, plan.children["down"], child(state, "down"), panel)

    def forward(self, x_BSD: DTensor) -> DTensor:
        layers = [*([self.gate] if self.is_gated else []), self.up, self.down]
        per_device = local_map(
            self.body,
            in_placements=(self.plan.x, *(placement for layer in layers for placement in layer.placements)),
            out_placements=list(self.plan.y),
            device_mesh=self.mesh,
        )
        return per_device(x_BSD, *(parameter for layer in layers for parameter in (layer.weight, layer.bias)))

    def body(self, x: torch.Tensor, *params: torch.Tensor | None) -> torch.Tensor:
        *into, w_down, b_down = params
        w, b = side_by_side(list(zip(into[::2], into[1::2], strict=True)))
        h = affine(x, w, b, self.up.grid)  # [B/R, S, F/C]; gate and up: [B/R, S, 2*F/C]
        h = gated(*h.chunk(2, -1)) if self.is_gated else self.act(h)
        return affine(h, w_down, b_down, self.down.grid)


STYLES = {"manual": ManualGridMlp}


def build(
    mesh: DeviceMesh,
    style: str,
    plan: Plan,
    state: Mapping[str, np.ndarray],
    activation: str = "swiglu",
    panel: int = 0,
) -> nn.Module:
    """The MLP; `state`: the global up.w [D, F], down.w [F, D], gate.w [D, F] if activation is "swiglu", any biases."""
    return STYLES[style](mesh, plan, state, activation, panel)
