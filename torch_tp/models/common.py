"""What the models share: checks of inputs, the stack of blocks, and slicing tokens for sequence parallelism."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import local_map

from torch_tp import block, cross_entropy, dropout, embedding
from torch_tp.collectives import split_to_tp
from torch_tp.layouts import Plan, child
from torch_tp.state import in_row


def check_inputs(inputs: Mapping[str, np.ndarray], num_ids: int, **options: Any) -> None:
    """Raises ValueError for ids or labels outside the vocabulary or a step that exceeds 32 bits; runs on the host."""
    embedding.check_inputs(inputs, num_ids)
    cross_entropy.check_inputs(inputs, num_ids)
    if "step" in inputs:
        dropout.check_inputs(inputs)


def blocks_of(state: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> dict[str, str]:
    """The shapes of the parameters of all blocks by name, in the notation of state.py."""
    first = next((key.split(".")[1] for key in state if key.startswith("blocks.")), "0")
    shapes = block.shapes_of(child(state, f"blocks.{first}"), options["norm_kind"], options["activation"])
    return in_row("blocks", shapes, state)


def build_blocks(
    layer: ModuleType,
    mesh: DeviceMesh,
    style: str,
    plan: Plan,
    state: Mapping[str, np.ndarray],
    options: Mapping[str, Any],
) -> nn.ModuleList:
    """The blocks "0", "1", ... of the state, built by the layer with these options."""
    names = sorted({name.partition(".")[0] for name in state}, key=int)
    blocks = (layer.build(mesh, style, plan, child(state, name), **options, number=int(name)) for name in names)
    return nn.ModuleList(blocks)


def build_dropout(
    mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> nn.Module:
    """The dropout on the input of the blocks of this state. Its number, 3 L, follows those of the L blocks."""
    number = 3 * len({name.partition(".")[0] for name in state})
    return dropout.build(mesh, style, plan, {}, options.get("drop_rate", 0.0), options.get("seed", 0), number)


def own_tokens(x: DTensor, dim: int, style: str) -> DTensor:
    """This device's slice of a replicated x along `dim`, the tokens; backward an all-gather (payload: x)."""
    if style == "manual":
        axis = x.device_mesh
        split = local_map(
            lambda whole: split_to_tp(whole, axis, dim),
            in_placements=([Replicate()],),
            out_placements=[Shard(dim)],
            device_mesh=axis,
        )
        return split(x)
    return x.redistribute(placements=[Shard(dim)])
