"""Dropout by global position: y = x / (1 - rate) where an element is kept, else 0, as a function of its position.

    B batch   S, T sequence   D features   H heads   tp devices on the axis "tp"

                       replicated   feature_parallel   sequence_parallel   head_parallel
    x, y per device    [B, S, D]    [B, S, D/tp]       [B, S/tp, D]        [H/tp, B, S, T]
    forward, backward  no collective

    key                threefry((seed, layer), (step, 0))          one per call of a layer
    bits_i             threefry(key, (row_i, column_i))[0]         32 bits
    kept_i             bits_i >= rate * 2^32

column is an element's index in the last dim of the global tensor, row its row-major index in all dims before it. Each
device computes the mask of its own elements, so the masks are bitwise the same at every tp degree, in every layout and
in both frameworks. The frameworks' own generators do not achieve this: DTensor's masks change with tp and, on CPU
meshes, are the same on every shard; JAX's do not depend on the sharding but differ from PyTorch's.
The generator is Threefry-2x32 with 20 rounds, as in JAX, written in integer operations: 120 per element, which eager
PyTorch launches one by one. `step` is an input, so that a compiled step does not change; give each microbatch its own.
Without a step, as in evaluation, nothing is dropped.

Sources: Srivastava et al. 2014, "Dropout"; Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import local_map

from torch_tp.layouts import Plan

STEP = {"step": Replicate()}

PLANS = {
    "replicated": Plan(x=Replicate(), y=Replicate(), inputs=STEP),
    "feature_parallel": Plan(x=Shard(2), y=Shard(2), inputs=STEP),
    "sequence_parallel": Plan(x=Shard(1), y=Shard(1), inputs=STEP),
    "head_parallel": Plan(x=Shard(0), y=Shard(0), inputs=STEP),
}

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Draw:
    """The rate of a dropout layer and the key of its masks."""

    rate: float
    seed: int
    layer: int  # number of the dropout layer in the model


def make_draw(rate: float, seed: int, layer: int) -> Draw | None:
    """A Draw, or None for rate 0. Raises ValueError for a rate outside [0, 1) or a key that does not fit 32 bits."""
    if not 0 <= rate < 1:
        raise ValueError(f"drop rate {rate}: expected 0 <= rate < 1")
    for name, number in (("seed", seed), ("layer", layer)):
        if not 0 <= number <= WORD:
            raise ValueError(f"{name}={number}: expected a number of 32 bits, 0 to {WORD}")
    return Draw(rate, seed, layer) if rate else None


def check_inputs(inputs: Mapping[str, np.ndarray], **options: Any) -> None:
    """Raises ValueError for a step that does not fit 32 bits; runs on the host."""
    if not 0 <= inputs["step"] <= WORD:
        raise ValueError(f"step={inputs['step']}: expected a number of 32 bits, 0 to {WORD}")


Word = torch.Tensor | int  # 32 bits in an int64: PyTorch has no uint32 addition or shift


def threefry(key: tuple[Word, Word], counter: tuple[Word, Word]) -> tuple[Word, Word]:
    """Threefry-2x32-20: two words of random bits from the key and the counter."""
    keys = (*key, key[0] ^ key[1] ^ PARITY)
    left, right = (counter[0] + keys[0]) & WORD, (counter[1] + keys[1]) & WORD
    for i in range(5):
        for bits in ROTATIONS[i % 2]:
            left = (left + right) & WORD
            right = ((right << bits) & WORD | right >> (32 - bits)) ^ left
        left, right = (left + keys[(i + 1) % 3]) & WORD, (right + keys[(i + 2) % 3] + i + 1) & WORD
    return left, right


def positions(x: torch.Tensor, dim: int | None, axis: DeviceMesh | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Global row [..., 1] and column [D] of each element of x, which is this device's shard along `dim`."""
    index = torch.zeros((), dtype=torch.int64, device=x.device)
    rows = index
    for i, size in enumerate(x.shape):
        index = torch.arange(size, device=x.device)
        whole = size
        if i == dim and axis is not None:
            index, whole = index + axis.get_local_rank() * size, size * axis.size()
        if i < x.ndim - 1:
            rows = rows[..., None] * whole + index
    return (rows & WORD)[..., None], index


def kept(
    x: torch.Tensor, step: torch.Tensor, draw: Draw, dim: int | None = None, axis: DeviceMesh | None = None
) -> torch.Tensor:
    """The mask: whether each element of x is kept. A DTensor knows its offsets; a shard needs `dim`, `axis`."""
    step = step.to_local() if isinstance(step, DTensor) else step
    if isinstance(x, DTensor):
        dim = next((placement.dim for placement in x.placements if isinstance(placement, Shard)), None)
        mask = kept(x.to_local(), step, draw, dim, x.device_mesh)
        return DTensor.from_local(mask, x.device_mesh, x.placements, run_check=False)
    bits, _ = threefry(threefry((draw.seed, draw.layer), (step, 0)), positions(x, dim, axis))
    return bits >= round(draw.rate * 2**32)


def dropout(
    x: torch.Tensor,
    step: torch.Tensor | None,
    draw: Draw | None,
    dim: int | None = None,
    axis: DeviceMesh | None = None,
) -> torch.Tensor:
    """x with dropped elements set to 0 and the others divided by (1 - rate), in float32 for bfloat16.

    dim, axis: if x is a local shard, the dim that is sharded and the mesh axis that shards it.
    """
    if draw is None or step is None:
        return x
    wide = x.to(torch.promote_types(x.dtype, torch.float32)) * (1 / (1 - draw.rate))
    return torch.where(kept(x, step, draw, dim, axis), wide, 0).to(x.dtype)


# --------------------------------------------------------------------------------------------------------- typed


class TypedDropout(nn.Module):
    """The mask is a DTensor with the layout of x."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, draw: Draw | None) -> None:
        super().__init__()
        self.axis, self.plan, self.draw = mesh, plan, draw

    def forward(self, x: DTensor, step: DTensor | None) -> DTensor:
        return dropout(x, step, self.draw)


# ---------------------------------------------------------------------------------------------------------- auto


class AutoDropout(TypedDropout):
    """The same: `parallelize_module` has no style for masks, and `nn.Dropout` would use DTensor's generator."""


# -------------------------------------------------------------------------------------------------------- manual


class ManualDropout(TypedDropout):
    """`body` is the per-device code; it computes the global positions of this device's elements."""

    def forward(self, x: DTensor, step: DTensor | None) -> DTensor:
        if step is None:
            return x
        per_device = local_map(
            self.body,
            in_placements=([self.plan.x], [self.plan.inputs["step"]]),
            out_placements=[self.plan.y],
            device_mesh=self.axis,
        )
        return per_device(x, step)

    def body(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        dim = self.plan.x.dim if isinstance(self.plan.x, Shard) else None
        return dropout(x, step, self.draw, dim, self.axis)


STYLES = {"auto": AutoDropout, "typed": TypedDropout, "manual": ManualDropout}


def build(
    mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], rate: float, seed: int, layer: int
) -> nn.Module:
    """The layer in one of the three styles; `state` is empty. Raises ValueError as `make_draw` does."""
    return STYLES[style](mesh, plan, make_draw(rate, seed, layer))
