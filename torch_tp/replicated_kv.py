"""Attention with fewer key and value heads than devices: each key head is replicated on several devices.

    B batch   S sequence   D features   H heads   K key and value heads   E features per head
    kv = K     devices with different key heads       the tp = kv * rep devices are a mesh of the axes "kv" and "rep"
    rep        devices with the same key head         (rep = tp / K: tp must be a multiple of K)

    w_q per device       [D, H/(kv*rep)*E]
    w_k, w_v per device  [D, K/kv*E]            the head that its queries read, replicated over rep
    y_BSD per device     [B, S, D]
    forward              all-reduce y_BSD over kv and rep
    backward             all-reduce dx_BSD over kv and rep, once
                         all-reduce dw_k, dw_v over rep: D*K/kv*E each (and db_k, db_v: K/kv*E)

Each replica computes the gradient from its own queries only; the gradient of the weight is the sum over the replicas.
If the all-reduce is forgotten nothing fails; the replicas drift apart.

Source: GQA, https://arxiv.org/abs/2305.13245; vLLM and Megatron-LM replicate key heads in the same way for K < tp.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.experimental import local_map
from torch.nn.functional import linear

from torch_tp.attention import SHAPES, Heads, attend
from torch_tp.collectives import copy_to_tp, reduce_from_tp
from torch_tp.layouts import Plan, child
from torch_tp.linear import PlainLinear, ShardedLinear
from torch_tp.state import check_plan, check_state

# On the axes kv and rep.
WHOLE, HEADS, KEYS = (Replicate(), Replicate()), (Shard(2), Shard(2)), (Shard(2), Replicate())
QUERY = Plan(x=WHOLE, y=HEADS, params={"weight": (Shard(0), Shard(0)), "bias": (Shard(0), Shard(0))})
KEY = Plan(x=WHOLE, y=KEYS, params={"weight": (Shard(0), Replicate()), "bias": (Shard(0), Replicate())})
ROW = Plan(x=HEADS, y=WHOLE, params={"weight": (Shard(1), Shard(1)), "bias": WHOLE})

PLANS = {"megatron": Plan(x=WHOLE, y=WHOLE, children={"q": QUERY, "k": KEY, "v": KEY, "o": ROW})}


def check_heads(num_heads: int, num_kv_heads: int, kv: int, rep: int) -> None:
    """Raises ValueError if the heads cannot be sharded whole, each query head together with its key head."""
    if num_kv_heads % kv or (kv < num_kv_heads and rep > 1):
        raise ValueError(f"kv={kv}, rep={rep}: with num_kv_heads={num_kv_heads}, kv={num_kv_heads} would work")
    if num_heads % (kv * rep):
        raise ValueError(f"num_heads={num_heads}: kv * rep = {kv * rep} devices do not divide it; take a multiple")


def attend_own(mesh: DeviceMesh, heads: Heads, q: DTensor, k: DTensor, v: DTensor) -> DTensor:
    """`attend` on each device's heads. The gradients of k and v come from this device's queries only: partial sums."""

    def attend_here(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        for array in (k, v):
            if array.requires_grad:  # DTensor would reduce-scatter a strided Partial() gradient to copy it
                array.register_hook(torch.Tensor.contiguous)
        return attend(q, k, v, heads)

    per_device = local_map(
        attend_here,
        in_placements=(HEADS, KEYS, KEYS),
        in_grad_placements=(HEADS, (Shard(2), Partial()), (Shard(2), Partial())),
        out_placements=list(HEADS),
        device_mesh=mesh,
    )
    return per_device(q, k, v)


# ---------------------------------------------------------------------------------------------------------- auto


class AutoReplicatedKv(nn.Module):
    """`distribute_module`, as ParallelStyles support no mesh of two axes; a hook all-reduces over the replicas."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], heads: Heads) -> None:
        super().__init__()
        self.axes, self.plan, self.heads = mesh, plan, heads
        self.q = PlainLinear(mesh.device_type, child(state, "q"))
        self.k = PlainLinear(mesh.device_type, child(state, "k"))
        self.v = PlainLinear(mesh.device_type, child(state, "v"))
        self.o = PlainLinear(mesh.device_type, child(state, "o"))
        distribute_module(self, mesh, self.partition)

    def partition(self, name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        """Replace the parameters of one of the linears by sharded ones."""
        for key, param in list(module.named_parameters(recurse=False)):
            placements = self.plan.children[name].params[key]
            param = nn.Parameter(distribute_tensor(param, mesh, placements, src_data_rank=None))
            param.register_hook(partial(DTensor.redistribute, placements=placements))
            module.register_parameter(key, param)

    def forward(self, x_BSD: DTensor) -> DTensor:
        x_BSD = x_BSD.redistribute(placements=WHOLE)  # its transpose: the all-reduce of dx
        y_BSN = attend_own(self.axes, self.heads, self.q(x_BSD), self.k(x_BSD), self.v(x_BSD))
        return self.o(y_BSN).redistribute(placements=self.plan.y)


# --------------------------------------------------------------------------------------------------------- typed


class TypedReplicatedKv(nn.Module):
    """dw_k has placements (Shard(0), Partial()); `redistribute` of w_k to its own layout all-reduces it backward."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], heads: Heads) -> None:
        super().__init__()
        self.axes, self.plan, self.heads = mesh, plan, heads
        self.q = ShardedLinear(mesh, plan.children["q"], child(state, "q"))
        self.k = ShardedLinear(mesh, plan.children["k"], child(state, "k"))
        self.v = ShardedLinear(mesh, plan.children["v"], child(state, "v"))
        self.o = ShardedLinear(mesh, plan.children["o"], child(state, "o"))

    def forward(self, x_BSD: DTensor) -> DTensor:
        x_BSD = x_BSD.redistribute(placements=WHOLE)  # its transpose: the all-reduce of dx
        q, k, v = (linear(x_BSD, *map(summed, (part.weight, part.bias))) for part in (self.q, self.k, self.v))
        y_BSD = linear(attend_own(self.axes, self.heads, q, k, v), self.o.weight)  # (Partial(), Partial())
        y_BSD = y_BSD.redistribute(placements=self.plan.y)
        return y_BSD if self.o.bias is None else y_BSD + self.o.bias


def summed(parameter: DTensor | None) -> DTensor | None:
    """The parameter itself; in the backward pass its Partial() gradient is all-reduced to the parameter's layout."""
    return None if parameter is None else parameter.redistribute(placements=parameter.placements)


# -------------------------------------------------------------------------------------------------------- manual


class ManualReplicatedKv(nn.Module):
    """Per-device code: f and g over all devices, and f over the replicas for the weights of keys and values."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], heads: Heads) -> None:
        super().__init__()
        self.axes, self.plan, self.heads = mesh, plan, heads
        self.all, self.replicas = mesh._flatten("kv+rep"), mesh["rep"]
        self.q = ShardedLinear(mesh, plan.children["q"], child(state, "q"))
        self.k = ShardedLinear(mesh, plan.children["k"], child(state, "k"))
        self.v = ShardedLinear(mesh, plan.children["v"], child(state, "v"))
        self.o = ShardedLinear(mesh, plan.children["o"], child(state, "o"))

    def forward(self, x_BSD: DTensor) -> DTensor:
        params = [parameter for part in (self.q, self.k, self.v, self.o) for parameter in (part.weight, part.bias)]
        per_device = local_map(
            self.body,
            in_placements=(self.plan.x, *(None if parameter is None else parameter.placements for parameter in params)),
            out_placements=list(self.plan.y),
            device_mesh=self.axes,
        )
        return per_device(x_BSD, *params)

    def body(
        self,
        x: torch.Tensor,
        w_q: torch.Tensor,
        b_q: torch.Tensor | None,
        w_k: torch.Tensor,
        b_k: torch.Tensor | None,
        w_v: torch.Tensor,
        b_v: torch.Tensor | None,
        w_o: torch.Tensor,
        b_o: torch.Tensor | None,
    ) -> torch.Tensor:
        x = copy_to_tp(x, self.all)  # [B, S, D]
        w_k, w_v = copy_to_tp(w_k, self.replicas), copy_to_tp(w_v, self.replicas)  # [D, K/kv*E]
        b_k, b_v = (None if b is None else copy_to_tp(b, self.replicas) for b in (b_k, b_v))  # [K/kv*E]
        q = linear(x, w_q, b_q)  # [B, S, H/(kv*rep)*E]
        k, v = linear(x, w_k, b_k), linear(x, w_v, b_v)  # [B, S, K/kv*E]
        y = attend(q, k, v, self.heads)  # [B, S, H/(kv*rep)*E]
        y = reduce_from_tp(linear(y, w_o), self.all)  # [B, S, D]
        return y if b_o is None else y + b_o


STYLES = {"auto": AutoReplicatedKv, "typed": TypedReplicatedKv, "manual": ManualReplicatedKv}


def build(
    mesh: DeviceMesh,
    style: str,
    plan: Plan,
    state: Mapping[str, np.ndarray],
    num_heads: int,
    num_kv_heads: int,
    causal: bool = False,
    rope_theta: float | None = None,
) -> nn.Module:
    """The layer in one of the three styles; `state`: the global q.w [D, H*E], k.w, v.w [D, K*E], o.w [H*E, D], biases.

    Raises ValueError if the heads do not fit the mesh.
    """
    check_plan(plan, PLANS)
    check_state(state, SHAPES, {"H": num_heads, "K": num_kv_heads})

    check_heads(num_heads, num_kv_heads, *mesh.shape)
    size, group = state["o.w"].shape[0] // num_heads, num_heads // num_kv_heads
    return STYLES[style](mesh, plan, state, Heads(size, group, causal, rope_theta))
