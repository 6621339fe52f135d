"""Megatron's attention with q, k, v in one weight: [q | k | v] = x w_qkv + b_qkv, then as in attention.py.

    B batch   S sequence   D features   H heads   K key and value heads   G = H/K   E features per head

                        the columns of w_qkv in memory                       per device
    contiguous          all of q, then all of k, then all of v (K = H)      [D, 3, H/tp*E]
    per_head            for each of the K: its G heads of q, one k, one v    [D, K/tp*(G+2)*E]

The order decides how the weight may be sharded. In per-head order (Megatron-LM's) the columns of a device are adjacent,
so an ordinary column-parallel linear is correct. If contiguous columns were split into tp equal parts, the first device
would hold only q; so the weight is viewed as three matrices, [D, 3, H*E], each sharded by heads. A compiler that is
given the naive sharding computes the right numbers, but has to send q, k and v to the devices where they belong.

    forward             all-reduce y_BSD
    backward            all-reduce dx_BSD

Source: Megatron-LM, https://arxiv.org/abs/1909.08053; the order of its columns is that of its `ParallelAttention`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.experimental import local_map
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import linear

from torch_tp.attention import COLUMN, ROW, Heads, attend, check_heads
from torch_tp.collectives import copy_to_tp, reduce_from_tp
from torch_tp.layouts import Plan, child
from torch_tp.linear import PlainLinear, ShardedLinear, TypedRowLinear
from torch_tp.packed import PACKED_COLUMN, PackedColwiseParallel, PlainPackedLinear, ShardedPackedLinear, linears
from torch_tp.state import check_plan, check_state

PLANS = {
    "contiguous": Plan(x=Replicate(), y=Replicate(), children={"qkv": PACKED_COLUMN, "o": ROW}),
    "per_head": Plan(x=Replicate(), y=Replicate(), children={"qkv": COLUMN, "o": ROW}),
}


def is_contiguous(plan: Plan) -> bool:
    """Whether the columns are contiguous: all of q, then all of k, then all of v."""
    return plan.children["qkv"] is PACKED_COLUMN


def split_qkv(qkv: torch.Tensor, heads: Heads) -> tuple[torch.Tensor, ...]:
    """q [B, S, H*E] and k, v [B, S, K*E] of [B, S, 3, H*E] (contiguous) or of [B, S, K*(G+2)*E] (per head)."""
    if qkv.ndim == 4:
        return qkv.unbind(2)
    groups = qkv.unflatten(2, (qkv.shape[2] // (heads.size * (heads.group + 2)), heads.group + 2, heads.size))
    return tuple(part.flatten(2) for part in groups.split([heads.group, 1, 1], 3))


# ---------------------------------------------------------------------------------------------------------- auto


class AutoFusedAttention(nn.Module):
    """`ColwiseParallel` is correct for per-head columns; for contiguous ones it would be wrong, silently."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], heads: Heads) -> None:
        super().__init__()
        self.plan, self.heads = plan, heads
        plain = PlainPackedLinear if is_contiguous(plan) else PlainLinear
        self.qkv = plain(mesh.device_type, child(state, "qkv"))
        self.o = PlainLinear(mesh.device_type, child(state, "o"))
        column, row = plan.children["qkv"], plan.children["o"]
        columns = ColwiseParallel(input_layouts=column.x, output_layouts=column.y, use_local_output=False)
        styles = {
            "qkv": PackedColwiseParallel() if is_contiguous(plan) else columns,
            "o": RowwiseParallel(input_layouts=row.x, output_layouts=plan.y, use_local_output=False),
        }
        parallelize_module(self, mesh, styles)

    def forward(self, x_BSD: DTensor) -> DTensor:
        x_BSD = x_BSD.redistribute(placements=[self.plan.children["qkv"].x])  # its transpose: the all-reduce of dx
        return self.o(attend(*split_qkv(self.qkv(x_BSD), self.heads), self.heads))


# --------------------------------------------------------------------------------------------------------- typed


class TypedFusedAttention(nn.Module):
    """A packed weight with Shard(1) gives a product with Shard(3); a single weight with Shard(0) one with Shard(2)."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], heads: Heads) -> None:
        super().__init__()
        self.plan, self.heads = plan, heads
        column = ShardedPackedLinear if is_contiguous(plan) else ShardedLinear
        self.qkv = column(mesh, plan.children["qkv"], child(state, "qkv"))
        self.o = TypedRowLinear(mesh, plan.children["o"], child(state, "o"))

    def forward(self, x_BSD: DTensor) -> DTensor:
        x_BSD = x_BSD.redistribute(placements=[self.plan.children["qkv"].x])  # its transpose: the all-reduce of dx
        product = linears if is_contiguous(self.plan) else linear
        qkv = product(x_BSD, self.qkv.weight, self.qkv.bias)
        return self.o(attend(*split_qkv(qkv, self.heads), self.heads))


# -------------------------------------------------------------------------------------------------------- manual


class ManualFusedAttention(nn.Module):
    """Per-device code for the whole layer: f at the input, g at the output."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], heads: Heads) -> None:
        super().__init__()
        self.axis, self.plan, self.heads = mesh, plan, heads
        column = ShardedPackedLinear if is_contiguous(plan) else ShardedLinear
        self.qkv = column(mesh, plan.children["qkv"], child(state, "qkv"))
        self.o = ShardedLinear(mesh, plan.children["o"], child(state, "o"))

    def forward(self, x_BSD: DTensor) -> DTensor:
        per_device = local_map(
            self.body,
            in_placements=([self.plan.x], *self.qkv.placements, *self.o.placements),
            out_placements=[self.plan.y],
            device_mesh=self.axis,
        )
        return per_device(x_BSD, self.qkv.weight, self.qkv.bias, self.o.weight, self.o.bias)

    def body(
        self,
        x: torch.Tensor,
        w_qkv: torch.Tensor,
        b_qkv: torch.Tensor | None,
        w_o: torch.Tensor,
        b_o: torch.Tensor | None,
    ) -> torch.Tensor:
        x = copy_to_tp(x, self.axis)  # [B, S, D]
        product = linears if is_contiguous(self.plan) else linear
        qkv = product(x, w_qkv, b_qkv)  # [B, S, 3, H/tp*E] or [B, S, K/tp*(G+2)*E]
        y = attend(*split_qkv(qkv, self.heads), self.heads)  # [B, S, H/tp*E]
        y = reduce_from_tp(linear(y, w_o), self.axis)  # [B, S, D]
        return y if b_o is None else y + b_o


# The state by name, in sizes: state.py.
OUT = {"o.w": "H*E D", "o.b?": "D"}
CONTIGUOUS = {"qkv.w": "D 3 H*E", "qkv.b?": "3 H*E", **OUT}
PER_HEAD = {"qkv.w": "D N*E", "qkv.b?": "N*E", **OUT}  # N = H + 2 K heads

STYLES = {"auto": AutoFusedAttention, "typed": TypedFusedAttention, "manual": ManualFusedAttention}


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
    """The layer in one of the three styles; `state`: the global qkv.w, [D, 3, H*E] or [D, K*(G+2)*E], o.w, any biases.

    Raises ValueError if tp does not divide the heads, or for contiguous columns with K < H.
    """
    check_plan(plan, PLANS)
    sizes = {"H": num_heads, "N": num_heads + 2 * num_kv_heads}
    check_state(state, CONTIGUOUS if is_contiguous(plan) else PER_HEAD, sizes)

    check_heads(num_heads, num_kv_heads, mesh.size())
    if is_contiguous(plan) and num_heads != num_kv_heads:
        raise ValueError(
            f"num_kv_heads={num_kv_heads}: contiguous q, k, v are of one size; take {num_heads}, or per_head"
        )
    size, group = state["o.w"].shape[0] // num_heads, num_heads // num_kv_heads
    return STYLES[style](mesh, plan, state, Heads(size, group, causal, rope_theta))
