"""Gated MLP of Llama: y = (silu(x w_gate + b_gate) * (x w_up + b_up)) w_down + b_down, silu(z) = z / (1 + exp(-z)).

    B batch   S sequence   D features   F hidden features   tp devices on the axis "tp"

                                    megatron              sequence_parallel
    x_BSD per device                [B, S, D]             [B, S/tp, D]
    w_gate_DF, w_up_DF per device   [D, F/tp]             [D, F/tp]
    h_BSF per device                [B, S, F/tp]          [B, S, F/tp]
    w_down_FD per device            [F/tp, D]             [F/tp, D]
    y_BSD per device                [B, S, D]             [B, S/tp, D]
    forward                         all-reduce y_BSD      all-gather x_BSD, reduce-scatter y_BSD
    backward                        all-reduce dx_BSD     all-gather dy_BSD, reduce-scatter dx_BSD, all-reduce db_down_D

Both gate and up read x: each device adds their two contributions to dx before the one all-reduce. Packed, gate and up
are one product with w_gate_up_D2F, [D, 2, F/tp] per device; packed.py explains why it is not [D, 2*F/tp].

Sources: Shazeer, https://arxiv.org/abs/2002.05202; Megatron-LM, https://arxiv.org/abs/1909.08053, section 3; sequence
parallelism, https://arxiv.org/abs/2205.05198, section 4.2.2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import local_map
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import linear, silu

from torch_tp.collectives import copy_to_tp, gather_from_sp, reduce_from_tp, reduce_scatter_to_sp
from torch_tp.layouts import Plan, child
from torch_tp.linear import PLANS as LINEAR
from torch_tp.linear import PlainLinear, ShardedLinear, TypedRowLinear
from torch_tp.packed import PACKED_COLUMN, PackedColwiseParallel, PlainPackedLinear, ShardedPackedLinear, linears
from torch_tp.state import check_plan, check_state

# The layer gathers x once for gate and up, which therefore see an x that is replicated.
INTO = {"gate": LINEAR["column_parallel"], "up": LINEAR["column_parallel"], "gate_up": PACKED_COLUMN}

PLANS = {
    "megatron": Plan(x=Replicate(), y=Replicate(), children={**INTO, "down": LINEAR["row_parallel"]}),
    "sequence_parallel": Plan(x=Shard(1), y=Shard(1), children={**INTO, "down": LINEAR["row_sequence_parallel"]}),
}


def is_packed(state: Mapping[str, np.ndarray]) -> bool:
    """Whether gate and up are one parameter."""
    return any(name.startswith("gate_up.") for name in state)


def gated(gate_BSF: torch.Tensor, up_BSF: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, elementwise on this device's features."""
    return silu(gate_BSF) * up_BSF


# ---------------------------------------------------------------------------------------------------------- auto


class AutoSwiglu(nn.Module):
    """Plain linears; x is redistributed once, where the hooks of gate and up would each do it separately.

    `PrepareModuleInput` gathers a sharded x but passes a replicated one through, so nothing would all-reduce dx.
    """

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.is_packed, device, down = is_packed(state), mesh.device_type, plan.children["down"]
        styles = {"down": RowwiseParallel(input_layouts=down.x, output_layouts=down.y, use_local_output=False)}
        if self.is_packed:
            self.gate_up = PlainPackedLinear(device, child(state, "gate_up"))
            styles["gate_up"] = PackedColwiseParallel()
        else:
            self.gate = PlainLinear(device, child(state, "gate"))
            self.up = PlainLinear(device, child(state, "up"))
            styles |= {name: ColwiseParallel(use_local_output=False) for name in ("gate", "up")}
        self.down = PlainLinear(device, child(state, "down"))
        parallelize_module(self, mesh, styles)
        self.down.add_bias_last()

    def forward(self, x_BSD: DTensor) -> DTensor:
        x_BSD = x_BSD.redistribute(placements=[Replicate()])
        gate_up = self.gate_up(x_BSD).unbind(2) if self.is_packed else (self.gate(x_BSD), self.up(x_BSD))
        return self.down(gated(*gate_up))


# --------------------------------------------------------------------------------------------------------- typed


class TypedSwiglu(nn.Module):
    """Redistributing a replicated x is a no-op forward; backward it all-reduces the sum of two Partial() gradients."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.is_packed = is_packed(state)
        if self.is_packed:
            self.gate_up = ShardedPackedLinear(mesh, plan.children["gate_up"], child(state, "gate_up"))
        else:
            self.gate = ShardedLinear(mesh, plan.children["gate"], child(state, "gate"))
            self.up = ShardedLinear(mesh, plan.children["up"], child(state, "up"))
        self.down = TypedRowLinear(mesh, plan.children["down"], child(state, "down"))

    def forward(self, x_BSD: DTensor) -> DTensor:
        x_BSD = x_BSD.redistribute(placements=[Replicate()])
        if self.is_packed:
            gate_up = linears(x_BSD, self.gate_up.weight, self.gate_up.bias).unbind(2)  # of type Shard(3)
        else:
            gate_up = [linear(x_BSD, layer.weight, layer.bias) for layer in (self.gate, self.up)]
        return self.down(gated(*gate_up))  # of type Shard(2)


# -------------------------------------------------------------------------------------------------------- manual


class ManualSwiglu(nn.Module):
    """Per-device code: f once for gate and up, g at the output, or their sequence-parallel counterparts."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.axis, self.plan, self.is_packed = mesh, plan, is_packed(state)
        if self.is_packed:
            self.gate_up = ShardedPackedLinear(mesh, plan.children["gate_up"], child(state, "gate_up"))
        else:
            self.gate = ShardedLinear(mesh, plan.children["gate"], child(state, "gate"))
            self.up = ShardedLinear(mesh, plan.children["up"], child(state, "up"))
        self.down = ShardedLinear(mesh, plan.children["down"], child(state, "down"))

    def forward(self, x_BSD: DTensor) -> DTensor:
        layers = [*([self.gate_up] if self.is_packed else [self.gate, self.up]), self.down]
        per_device = local_map(
            self.body,
            in_placements=([self.plan.x], *(placement for layer in layers for placement in layer.placements)),
            out_placements=[self.plan.y],
            device_mesh=self.axis,
        )
        return per_device(x_BSD, *(parameter for layer in layers for parameter in (layer.weight, layer.bias)))

    def body(self, x: torch.Tensor, *params: torch.Tensor | None) -> torch.Tensor:
        *into, w_down, b_down = params
        x = gather_from_sp(x, self.axis, dim=1) if self.plan.x == Shard(1) else copy_to_tp(x, self.axis)  # [B, S, D]
        if self.is_packed:
            gate_up = linears(x, *into)  # [B, S, 2, F/tp]
            h = gated(*gate_up.unbind(2))  # [B, S, F/tp]
        else:
            h = gated(linear(x, *into[:2]), linear(x, *into[2:]))  # [B, S, F/tp]
        y = linear(h, w_down)  # [B, S, D], partial
        if self.plan.y == Shard(1):
            y = reduce_scatter_to_sp(y, self.axis, dim=1)  # [B, S/tp, D]
            return y if b_down is None else y + copy_to_tp(b_down, self.axis)
        y = reduce_from_tp(y, self.axis)  # [B, S, D]
        return y if b_down is None else y + b_down


# The state by name, in sizes: state.py.
DOWN = {"down.w": "F D", "down.b?": "D"}
PACKED = {"gate_up.w": "D 2 F", "gate_up.b?": "2 F", **DOWN}
SEPARATE = {"gate.w": "D F", "gate.b?": "F", "up.w": "D F", "up.b?": "F", **DOWN}

STYLES = {"auto": AutoSwiglu, "typed": TypedSwiglu, "manual": ManualSwiglu}


def build(mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray]) -> nn.Module:
    """The layer in one of the three styles; `state`: the global gate.w and up.w [D, F], or gate_up.w [D, 2, F],
    down.w [F, D], any biases.
    """
    check_plan(plan, PLANS)
    check_state(state, PACKED if is_packed(state) else SEPARATE)

    return STYLES[style](mesh, plan, state)
