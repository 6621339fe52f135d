"""Megatron's MLP, a column- and a row-parallel linear: y = act(x w_up + b_up) w_down + b_down.

    B batch   S sequence   D features   F hidden features   tp devices on the axis "tp"

                           megatron              sequence_parallel
    x_BSD per device       [B, S, D]             [B, S/tp, D]
    w_up_DF per device     [D, F/tp]             [D, F/tp]
    h_BSF per device       [B, S, F/tp]          [B, S, F/tp]
    w_down_FD per device   [F/tp, D]             [F/tp, D]
    y_BSD per device       [B, S, D]             [B, S/tp, D]
    forward                all-reduce y_BSD      all-gather x_BSD, reduce-scatter y_BSD
    backward               all-reduce dx_BSD     all-gather dy_BSD, reduce-scatter dx_BSD, all-reduce db_down_D

A column-parallel linear followed by a row-parallel one needs no collective in between: the hidden features stay where
they are, and the activation and its dropout are elementwise, so that each device applies them to its own features.
The gathered x, [B, S, D], is saved for the gradient of w_up; Megatron-LM saves the shard and gathers it again in the
backward pass.

Sources: Megatron-LM, https://arxiv.org/abs/1909.08053, section 3, figure 3a; sequence parallelism,
https://arxiv.org/abs/2205.05198, section 4.2.2, figure 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import local_map
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import gelu, linear, relu

from torch_tp.collectives import copy_to_tp, gather_from_sp, reduce_from_tp, reduce_scatter_to_sp
from torch_tp.dropout import STEP, Draw, dropout, make_draw
from torch_tp.layouts import Plan, child
from torch_tp.linear import PLANS as LINEAR
from torch_tp.linear import PlainLinear, ShardedLinear, TypedColumnLinear, TypedRowLinear
from torch_tp.state import check_plan, check_state

PLANS = {
    "megatron": Plan(
        x=Replicate(),
        y=Replicate(),
        inputs=STEP,
        children={"up": LINEAR["column_parallel"], "down": LINEAR["row_parallel"]},
    ),
    "sequence_parallel": Plan(
        x=Shard(1),
        y=Shard(1),
        inputs=STEP,
        children={"up": LINEAR["column_sequence_parallel"], "down": LINEAR["row_sequence_parallel"]},
    ),
}

# GELU is exact by default in PyTorch and the tanh approximation in JAX: always say which.
ACTIVATIONS = {
    "gelu_erf": partial(gelu, approximate="none"),
    "gelu_tanh": partial(gelu, approximate="tanh"),
    "relu": relu,
}


# ---------------------------------------------------------------------------------------------------------- auto


class AutoMlp(nn.Module):
    """Two plain linears; `parallelize_module` shards them by name."""

    def __init__(
        self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], activation: str, draw: Draw | None
    ) -> None:
        super().__init__()
        self.up = PlainLinear(mesh.device_type, child(state, "up"))
        self.down = PlainLinear(mesh.device_type, child(state, "down"))
        self.plan, self.act, self.draw = plan, ACTIVATIONS[activation], draw
        up, down = plan.children["up"], plan.children["down"]
        styles = {
            "up": ColwiseParallel(input_layouts=up.x, output_layouts=up.y, use_local_output=False),
            "down": RowwiseParallel(input_layouts=down.x, output_layouts=down.y, use_local_output=False),
        }
        parallelize_module(self, mesh, styles)
        self.down.add_bias_last()

    def forward(self, x_BSD: DTensor, step: DTensor | None = None) -> DTensor:
        # A no-op in the forward pass; in the backward pass it all-reduces the partial gradients of x.
        x_BSD = x_BSD.redistribute(placements=[self.plan.x])
        return self.down(dropout(self.act(self.up(x_BSD)), step, self.draw))


# --------------------------------------------------------------------------------------------------------- typed


class TypedMlp(nn.Module):
    """An elementwise activation keeps the placement Shard(2), so nothing is redistributed in between."""

    def __init__(
        self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], activation: str, draw: Draw | None
    ) -> None:
        super().__init__()
        self.up = TypedColumnLinear(mesh, plan.children["up"], child(state, "up"))
        self.down = TypedRowLinear(mesh, plan.children["down"], child(state, "down"))
        self.plan, self.act, self.draw = plan, ACTIVATIONS[activation], draw

    def forward(self, x_BSD: DTensor, step: DTensor | None = None) -> DTensor:
        x_BSD = x_BSD.redistribute(placements=[self.plan.x])  # backward: all-reduces dx, as in AutoMlp
        return self.down(dropout(self.act(self.up(x_BSD)), step, self.draw))


# -------------------------------------------------------------------------------------------------------- manual


class ManualMlp(nn.Module):
    """Per-device code for the whole MLP: f at the input, g at the output, or their sequence-parallel counterparts."""

    def __init__(
        self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], activation: str, draw: Draw | None
    ) -> None:
        super().__init__()
        self.axis, self.plan = mesh, plan
        self.up = ShardedLinear(mesh, plan.children["up"], child(state, "up"))
        self.down = ShardedLinear(mesh, plan.children["down"], child(state, "down"))
        self.act, self.draw = ACTIVATIONS[activation], draw

    def forward(self, x_BSD: DTensor, step: DTensor | None = None) -> DTensor:
        per_device = local_map(
            self.body,
            in_placements=(
                [self.plan.x],
                *self.up.placements,
                *self.down.placements,
                None if step is None else [Replicate()],
            ),
            out_placements=[self.plan.y],
            device_mesh=self.axis,
        )
        return per_device(x_BSD, self.up.weight, self.up.bias, self.down.weight, self.down.bias, step)

    def body(
        self,
        x: torch.Tensor,
        w_up: torch.Tensor,
        b_up: torch.Tensor | None,
        w_down: torch.Tensor,
        b_down: torch.Tensor | None,
        step: torch.Tensor | None,
    ) -> torch.Tensor:
        x = gather_from_sp(x, self.axis, dim=1) if self.plan.x == Shard(1) else copy_to_tp(x, self.axis)  # [B, S, D]
        h = self.act(linear(x, w_up, b_up))  # [B, S, F/tp]
        h = dropout(h, step, self.draw, 2, self.axis)
        y = linear(h, w_down)  # [B, S, D], partial
        if self.plan.y == Shard(1):
            y = reduce_scatter_to_sp(y, self.axis, dim=1)  # [B, S/tp, D]
            return y if b_down is None else y + copy_to_tp(b_down, self.axis)
        y = reduce_from_tp(y, self.axis)  # [B, S, D]
        return y if b_down is None else y + b_down


# The state by name, in sizes: state.py.
SHAPES = {"up.w": "D F", "up.b?": "F", "down.w": "F D", "down.b?": "D"}

STYLES = {"auto": AutoMlp, "typed": TypedMlp, "manual": ManualMlp}


def build(
    mesh: DeviceMesh,
    style: str,
    plan: Plan,
    state: Mapping[str, np.ndarray],
    activation: str = "gelu_erf",
    drop_rate: float = 0.0,
    seed: int = 0,
    layer: int = 0,
) -> nn.Module:
    """The MLP in one of the three styles; `state`: the global up.w [D, F], down.w [F, D], any biases.

    drop_rate: of the dropout on the hidden activations, active when a `step` is given; seed, layer: its key.
    Raises ValueError as `make_draw` does.
    """
    check_plan(plan, PLANS)
    check_state(state, SHAPES)
    return STYLES[style](mesh, plan, state, activation, make_draw(drop_rate, seed, layer))
