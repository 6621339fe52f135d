"""Layer norm and RMS norm over the features of each token: y = (x - mean) / sqrt(var + eps) * scale + b.

    B batch   S sequence   D features   tp devices on the axis "tp"

                       replicated     sequence-parallel
    x_BSD per device   [B, S, D]      [B, S/tp, D]
    y_BSD per device   [B, S, D]      [B, S/tp, D]
    scale_D, b_D       [D]            [D], replicated
    forward            no collective  no collective
    backward           no collective  all-reduce dscale_D, all-reduce db_D

Layer norm: mean and var = mean((x - mean)²) over the D features of a token. RMS norm: the same with mean 0 and no b.
Under sequence parallelism each device sees only its own tokens, so its gradient of scale is a partial sum over tokens.
If the all-reduce is forgotten nothing fails; the copies of scale drift apart.

Sources: Ba et al., https://arxiv.org/abs/1607.06450; Zhang & Sennrich, https://arxiv.org/abs/1910.07467; sequence
parallelism, https://arxiv.org/abs/2205.05198, section 4.2.2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor.experimental import local_map
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module
from torch.nn import functional

from torch_tp.collectives import copy_to_tp
from torch_tp.layouts import Plan, place, to_tensor
from torch_tp.state import check_plan, check_state

REPLICATED = {"weight": Replicate(), "bias": Replicate()}

PLANS = {
    "replicated": Plan(x=Replicate(), y=Replicate(), params=REPLICATED),
    "sequence_parallel": Plan(x=Shard(1), y=Shard(1), params=REPLICATED),
}


def layer_norm(x: torch.Tensor, scale: torch.Tensor, b: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Layer norm of every token; PyTorch computes the statistics of bfloat16 in float32."""
    return functional.layer_norm(x, scale.shape, scale, b, eps)


def rms_norm(x: torch.Tensor, scale: torch.Tensor, b: torch.Tensor | None, eps: float) -> torch.Tensor:
    """RMS norm of every token; it has no b."""
    return functional.rms_norm(x, scale.shape, scale, eps)


NORMS = {"layer_norm": layer_norm, "rms_norm": rms_norm}


class ShardedNorm(nn.Module):
    """The parameters of the typed and manual layers: DTensors, laid out as the plan says."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], kind: str, eps: float) -> None:
        super().__init__()
        self.axis, self.plan, self.norm, self.eps = mesh, plan, NORMS[kind], eps
        self.weight = nn.Parameter(place(state["scale"], mesh, plan.params["weight"]))
        self.bias = nn.Parameter(place(state["b"], mesh, plan.params["bias"])) if "b" in state else None
        self.placements = [plan.params["weight"]], None if self.bias is None else [plan.params["bias"]]


# ---------------------------------------------------------------------------------------------------------- auto


def shard_norm(module: nn.Module, mesh: DeviceMesh, plan: Plan) -> None:
    """Replicate the parameters and, if the plan says so, expect x sharded on S.

    `SequenceParallel` leaves the gradients of scale and b as partial sums; the hooks all-reduce them.
    """
    if plan.x == Replicate():
        distribute_module(module, mesh)
        return
    parallelize_module(module, mesh, SequenceParallel(sequence_dim=1))
    for parameter in module.parameters():
        parameter.register_hook(lambda grad: grad.redistribute(placements=[Replicate()]))


class AutoLayerNorm(nn.LayerNorm):
    """PyTorch's own layer with the given state; `parallelize_module` makes its parameters and inputs DTensors."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], kind: str, eps: float) -> None:
        super().__init__(state["scale"].shape, eps, bias="b" in state, device="meta")
        self.weight = nn.Parameter(to_tensor(state["scale"], mesh.device_type))
        if "b" in state:
            self.bias = nn.Parameter(to_tensor(state["b"], mesh.device_type))
        shard_norm(self, mesh, plan)


class AutoRmsNorm(nn.RMSNorm):
    """The same for RMS norm; without `eps` PyTorch would use the machine epsilon of x's dtype."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], kind: str, eps: float) -> None:
        super().__init__(state["scale"].shape, eps, device="meta")
        self.weight = nn.Parameter(to_tensor(state["scale"], mesh.device_type))
        shard_norm(self, mesh, plan)


# --------------------------------------------------------------------------------------------------------- typed


class TypedNorm(ShardedNorm):
    """Each token is whole on its device, so y has the placement of x. The parameters are redistributed to the placement
    they already have: a no-op forward, and backward an all-reduce of their Partial() gradients.
    """

    def forward(self, x_BSD: DTensor) -> DTensor:
        scale_D = self.weight.redistribute(placements=[Replicate()])
        b_D = None if self.bias is None else self.bias.redistribute(placements=[Replicate()])
        return self.norm(x_BSD, scale_D, b_D, self.eps)


# -------------------------------------------------------------------------------------------------------- manual


class ManualNorm(ShardedNorm):
    """Per-device code: f on the parameters if the tokens are sharded."""

    def forward(self, x_BSD: DTensor) -> DTensor:
        per_device = local_map(
            self.body,
            in_placements=([self.plan.x], *self.placements),
            out_placements=[self.plan.y],
            device_mesh=self.axis,
        )
        return per_device(x_BSD, self.weight, self.bias)

    def body(self, x: torch.Tensor, scale: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        if self.plan.x == Shard(1):  # x: [B, S/tp, D]
            scale = copy_to_tp(scale, self.axis)  # [D]
            b = None if b is None else copy_to_tp(b, self.axis)  # [D]
        return self.norm(x, scale, b, self.eps)


# The state by name, in sizes: state.py.
SHAPES = {"layer_norm": {"scale": "D", "b?": "D"}, "rms_norm": {"scale": "D"}}

STYLES = {
    "auto": {"layer_norm": AutoLayerNorm, "rms_norm": AutoRmsNorm},
    "typed": {"layer_norm": TypedNorm, "rms_norm": TypedNorm},
    "manual": {"layer_norm": ManualNorm, "rms_norm": ManualNorm},
}


def build(
    mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], kind: str, eps: float
) -> nn.Module:
    """The layer in one of the three styles; `state`: scale [D] and, for a layer norm that has one, b [D].

    eps has no default, as the frameworks' defaults differ (layer norm: PyTorch 1e-5, Flax 1e-6).
    """
    check_plan(plan, PLANS)
    check_state(state, SHAPES[kind])

    return STYLES[style][kind](mesh, plan, state, kind, eps)
