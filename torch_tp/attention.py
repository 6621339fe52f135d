"""Megatron's attention: y = (softmax(q k^T / sqrt(E)) v) w_o + b_o, with q = x w_q + b_q, k = x w_k + b_k, v likewise.

    B batch   S, T sequence (of queries, of keys)   D features   tp devices on the axis "tp"
    H heads   K key and value heads (K = H: multi-head; K < H: grouped-query)   G = H/K   E features per head

    x_BSD per device           [B, S, D]
    w_q per device             [D, H/tp*E]
    w_k, w_v per device        [D, K/tp*E]     query head h reads key head h//G, which is on its device
    scores_KBGST per device    [K/tp, B, G, S, T]
    w_o per device             [H/tp*E, D]
    y_BSD per device           [B, S, D]
    forward                    all-reduce y_BSD
    backward                   all-reduce dx_BSD once: dq w_q^T + dk w_k^T + dv w_v^T is summed on each device first

Under the plan `sequence_parallel`, x and y are [B, S/tp, D] per device: x is gathered once and y is reduce-scattered,
and the reverse in the backward pass. Each device adds the bias of o to its own tokens, so its gradient is all-reduced.

Whole heads are sharded; they are as independent of each other as the hidden features of the MLP. So tp must divide K.
For fewer key heads than devices see `replicated_kv.py`; for q, k, v in one weight, `fused_attention.py`.
Given a `step`, each device applies dropout to the probabilities of its own heads (dropout.py).
The softmax, its scaling and RoPE are computed in float32 for bfloat16; the matrix products take and return bfloat16.

Sources: Megatron-LM, https://arxiv.org/abs/1909.08053, section 3, figure 3b; GQA, https://arxiv.org/abs/2305.13245.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import local_map
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import linear

from torch_tp.collectives import copy_to_tp, gather_from_sp, reduce_from_tp, reduce_scatter_to_sp
from torch_tp.dropout import STEP, Draw, dropout, make_draw
from torch_tp.layouts import Plan, child, to_tensor
from torch_tp.linear import PLANS as LINEAR
from torch_tp.linear import PlainLinear, ShardedLinear, TypedRowLinear
from torch_tp.rope import rotate, rotations
from torch_tp.state import check_plan, check_state

COLUMN, ROW = LINEAR["column_parallel"], LINEAR["row_parallel"]

PLANS = {
    "megatron": Plan(
        x=Replicate(),
        y=Replicate(),
        inputs=STEP,
        children={"q": COLUMN, "k": COLUMN, "v": COLUMN, "o": ROW},
    ),
    "sequence_parallel": Plan(
        x=Shard(1),
        y=Shard(1),
        inputs=STEP,
        children={"q": COLUMN, "k": COLUMN, "v": COLUMN, "o": LINEAR["row_sequence_parallel"]},
    ),
}


@dataclass(frozen=True)
class Heads:
    """The hyperparameters that do not follow from the shapes of the weights."""

    size: int  # E
    group: int  # G, query heads per key head
    causal: bool  # queries do not see later keys
    rope_theta: float | None  # None: no rotary embedding
    draw: Draw | None = None  # dropout of the probabilities


def check_heads(num_heads: int, num_kv_heads: int, size: int, axis: str = "tp") -> None:
    """Raises ValueError if the heads cannot be sharded whole, each query head together with its key head."""
    if num_heads % num_kv_heads:
        raise ValueError(f"num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}: take a divisor")
    if num_kv_heads % size:
        fits = [way for way in range(1, num_kv_heads + 1) if num_kv_heads % way == 0]
        is_shared = axis == "tp" and size % num_kv_heads == 0
        shared = f", or replicated_kv with kv={num_kv_heads},rep={size // num_kv_heads}" if is_shared else ""
        raise ValueError(
            f"{axis}={size} does not divide num_kv_heads={num_kv_heads}: {axis} in {fits} would work{shared}"
        )


def constant(array: np.ndarray | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The array on the device of `like`; if that is a DTensor, replicated on its mesh, as operators do not mix."""
    tensor = to_tensor(array, like.device.type)
    if not isinstance(like, DTensor):
        return tensor
    return DTensor.from_local(tensor, like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: Heads,
    step: torch.Tensor | None = None,
    axis: DeviceMesh | None = None,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(E)) v for the heads given: q [B, S, H*E]; k, v [B, S, K*E] -> [B, S, H*E].

    Heads go first: einsum flattens the batch dims, and DTensor can only keep the sharding of the outermost of them.
    """
    S, E, K = q.shape[1], heads.size, k.shape[2] // heads.size
    wide = torch.promote_types(q.dtype, torch.float32)
    q = q.unflatten(2, (K, q.shape[2] // (K * E), E)).permute(2, 0, 3, 1, 4)  # [K, B, G, S, E]
    k, v = (array.unflatten(2, (K, E)).permute(2, 0, 1, 3) for array in (k, v))  # [K, B, S, E]
    if heads.rope_theta is not None:
        cos, sin = (constant(table, q).to(wide) for table in rotations(S, E, heads.rope_theta))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    scores = torch.einsum("kbgse,kbte->kbgst", q, k).to(wide) * E**-0.5
    if heads.causal:
        later = torch.ones(S, S, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(constant(later, q), -torch.inf)
    weights = dropout(scores.softmax(-1), step, heads.draw, 0, axis)
    y = torch.einsum("kbgst,kbte->kbgse", weights.to(v.dtype), v)
    return y.permute(1, 3, 0, 2, 4).flatten(2)  # [B, S, K*G*E]


# ---------------------------------------------------------------------------------------------------------- auto


class AutoAttention(nn.Module):
    """`parallelize_module` shards the linears; they return q, k, v as local tensors, with this device's heads."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], heads: Heads) -> None:
        super().__init__()
        self.axis, self.plan, self.heads = mesh, plan, heads
        self.q = PlainLinear(mesh.device_type, child(state, "q"))
        self.k = PlainLinear(mesh.device_type, child(state, "k"))
        self.v = PlainLinear(mesh.device_type, child(state, "v"))
        self.o = PlainLinear(mesh.device_type, child(state, "o"))
        row = plan.children["o"]
        styles = {name: ColwiseParallel(input_layouts=plan.children[name].x) for name in ("q", "k", "v")}
        styles["o"] = RowwiseParallel(input_layouts=row.x, output_layouts=plan.y, use_local_output=False)
        parallelize_module(self, mesh, styles)
        self.o.add_bias_last()

    def forward(self, x_BSD: DTensor, step: DTensor | None = None) -> DTensor:
        # A no-op for a replicated x; in the backward pass it all-reduces the sum of the three partial gradients.
        x_BSD = x_BSD.redistribute(placements=[self.plan.children["q"].x])
        return self.o(attend(self.q(x_BSD), self.k(x_BSD), self.v(x_BSD), self.heads, step, self.axis))


# --------------------------------------------------------------------------------------------------------- typed


class TypedAttention(nn.Module):
    """q, k, v stay sharded by heads from the projections to the last product; `attend` needs no annotation."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], heads: Heads) -> None:
        super().__init__()
        self.plan, self.heads = plan, heads
        self.q = ShardedLinear(mesh, plan.children["q"], child(state, "q"))
        self.k = ShardedLinear(mesh, plan.children["k"], child(state, "k"))
        self.v = ShardedLinear(mesh, plan.children["v"], child(state, "v"))
        self.o = TypedRowLinear(mesh, plan.children["o"], child(state, "o"))

    def forward(self, x_BSD: DTensor, step: DTensor | None = None) -> DTensor:
        # The gradient is Partial() until here, where it takes the placement of x: one all-reduce for q, k and v.
        x_BSD = x_BSD.redistribute(placements=[self.plan.children["q"].x])
        q, k, v = (linear(x_BSD, part.weight, part.bias) for part in (self.q, self.k, self.v))  # Shard(2)
        return self.o(attend(q, k, v, self.heads, step))


# -------------------------------------------------------------------------------------------------------- manual


class ManualAttention(nn.Module):
    """Per-device code for the whole layer: f at the input, g at the output, or their sequence-parallel counterparts."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray], heads: Heads) -> None:
        super().__init__()
        self.axis, self.plan, self.heads = mesh, plan, heads
        self.q = ShardedLinear(mesh, plan.children["q"], child(state, "q"))
        self.k = ShardedLinear(mesh, plan.children["k"], child(state, "k"))
        self.v = ShardedLinear(mesh, plan.children["v"], child(state, "v"))
        self.o = ShardedLinear(mesh, plan.children["o"], child(state, "o"))

    def forward(self, x_BSD: DTensor, step: DTensor | None = None) -> DTensor:
        linears = self.q, self.k, self.v, self.o
        per_device = local_map(
            self.body,
            in_placements=(
                [self.plan.x],
                *(placement for part in linears for placement in part.placements),
                None if step is None else [Replicate()],
            ),
            out_placements=[self.plan.y],
            device_mesh=self.axis,
        )
        return per_device(x_BSD, *(parameter for part in linears for parameter in (part.weight, part.bias)), step)

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
        step: torch.Tensor | None,
    ) -> torch.Tensor:
        x = gather_from_sp(x, self.axis, dim=1) if self.plan.x == Shard(1) else copy_to_tp(x, self.axis)  # [B, S, D]
        q = linear(x, w_q, b_q)  # [B, S, H/tp*E]
        k, v = linear(x, w_k, b_k), linear(x, w_v, b_v)  # [B, S, K/tp*E]
        y = attend(q, k, v, self.heads, step, self.axis)  # [B, S, H/tp*E]
        y = linear(y, w_o)  # [B, S, D], partial
        if self.plan.y == Shard(1):
            y = reduce_scatter_to_sp(y, self.axis, dim=1)  # [B, S/tp, D]
            return y if b_o is None else y + copy_to_tp(b_o, self.axis)
        y = reduce_from_tp(y, self.axis)  # [B, S, D]
        return y if b_o is None else y + b_o


# The state by name, in sizes: state.py.
SHAPES = {
    **{"q.w": "D H*E", "q.b?": "H*E"},
    **{f"{name}.{leaf}": shape for name in "kv" for leaf, shape in (("w", "D K*E"), ("b?", "K*E"))},
    **{"o.w": "H*E D", "o.b?": "D"},
}

STYLES = {"auto": AutoAttention, "typed": TypedAttention, "manual": ManualAttention}


def build(
    mesh: DeviceMesh,
    style: str,
    plan: Plan,
    state: Mapping[str, np.ndarray],
    num_heads: int,
    num_kv_heads: int,
    causal: bool = False,
    rope_theta: float | None = None,
    drop_rate: float = 0.0,
    seed: int = 0,
    layer: int = 0,
) -> nn.Module:
    """The layer in one of the three styles; `state`: the global q.w [D, H*E], k.w, v.w [D, K*E], o.w [H*E, D], biases.

    drop_rate: of the dropout on the probabilities, active when a `step` is given; seed, layer: its key.
    Raises ValueError if tp does not divide the heads, and as `make_draw` does.
    """
    check_plan(plan, PLANS)
    check_state(state, SHAPES, {"H": num_heads, "K": num_kv_heads})

    check_heads(num_heads, num_kv_heads, mesh.size())
    size, group = state["o.w"].shape[0] // num_heads, num_heads // num_kv_heads
    draw = make_draw(drop_rate, seed, layer)
    return STYLES[style](mesh, plan, state, Heads(size, group, causal, rope_theta, draw))
