"""Embedding and head that share one table: h = table[x], y = h table^T.

    B batch   S sequence   D features   V rows of the table, and logits   tp devices on the axis "tp"

                         vocab_parallel        sequence_parallel
    x_BS per device      [B, S]                [B, S]              ids
    table_VD per device  [V/tp, D]             [V/tp, D]           one parameter: its gradient sums over both uses
    h_BSD per device     [B, S, D]             [B, S/tp, D]
    y_BSV per device     [B, S, V/tp]          [B, S, V/tp]        logits, as the cross entropy takes them
    forward              all-reduce h_BSD      reduce-scatter h_BSD, all-gather h_BSD
    backward             all-reduce dh_BSD     reduce-scatter dh_BSD, all-gather dh_BSD

A vocab-parallel embedding is sharded by rows, and the head's weight [V, D] by its output features: the same rows. What
lies between the two (here nothing; in a model, its blocks) sees all features of all tokens, or of this device's.

Sources: Press & Wolf, https://arxiv.org/abs/1608.05859; Megatron-LM, https://arxiv.org/abs/1909.08053, section 3;
sequence parallelism, https://arxiv.org/abs/2205.05198, section 4.2.2.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import local_map
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import linear

from torch_tp.collectives import copy_to_tp, gather_from_sp
from torch_tp.embedding import PLANS as EMBEDDING
from torch_tp.embedding import (
    ManualEmbedding,
    PlainEmbedding,
    TypedEmbedding,
    check_ids,
    check_rows,
    check_size,
    shard_gradient,
)
from torch_tp.layouts import Plan, child
from torch_tp.state import check_plan, check_state

PLANS = {
    plan: Plan(x=Replicate(), y=Shard(2), children={"embed": EMBEDDING[plan]})
    for plan in ("vocab_parallel", "sequence_parallel")
}


def check_inputs(inputs: Mapping[str, np.ndarray], num_ids: int) -> None:
    """Raises ValueError for ids outside the vocabulary; runs on the host, before the ids are placed."""
    check_ids("x", inputs["x"], num_ids)


class Tied(nn.Module):
    """The layers `embed` and `logits` with one table: a model puts its blocks between them."""

    @abstractmethod
    def logits(self, h_BSD: DTensor) -> DTensor:
        """y_BSV, sharded on V, of h_BSD as `embed` lays it out."""

    def forward(self, x_BS: DTensor) -> DTensor:
        return self.logits(self.embed(x_BS))


# ---------------------------------------------------------------------------------------------------------- auto


class AutoTied(Tied):
    """An embedding and a head with one weight. `parallelize_module` unties them: each gets a parameter of its own.

    Nothing fails then; the two drift apart from the first optimizer step on.
    """

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        check_rows(mesh, state["embed.table"])
        V, D = state["embed.table"].shape
        self.embed = PlainEmbedding(mesh.device_type, child(state, "embed"))
        self.head = nn.Linear(D, V, bias=False, device="meta")
        self.head.weight = self.embed.weight
        embed = plan.children["embed"]
        styles = {
            "embed": RowwiseParallel(input_layouts=embed.x, output_layouts=embed.y, use_local_output=False),
            "head": ColwiseParallel(output_layouts=plan.y, use_local_output=False),
        }
        parallelize_module(self, mesh, styles)
        self.head.weight = self.embed.weight
        shard_gradient(self.embed.weight)

    def logits(self, h_BSD: DTensor) -> DTensor:
        # A no-op for a replicated h; in the backward pass it all-reduces the partial gradients of h.
        return self.head(h_BSD.redistribute(placements=[Replicate()]))


# --------------------------------------------------------------------------------------------------------- typed


class TypedTied(Tied):
    """A table with Shard(0) gives a masked Partial() when looked up, and Shard(2) logits when multiplied with."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.embed = TypedEmbedding(mesh, plan.children["embed"], child(state, "embed"))

    def logits(self, h_BSD: DTensor) -> DTensor:
        h_BSD = h_BSD.redistribute(placements=[Replicate()])  # backward: all-reduces dh, as in AutoTied
        return linear(h_BSD, self.embed.weight)  # Shard(2)


# -------------------------------------------------------------------------------------------------------- manual


class ManualTied(Tied):
    """Masked lookup and g; f and the product with this device's rows; or the sequence-parallel counterparts of g, f."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.axis, self.plan = mesh, plan
        self.embed = ManualEmbedding(mesh, plan.children["embed"], child(state, "embed"))

    def logits(self, h_BSD: DTensor) -> DTensor:
        embed = self.plan.children["embed"]
        per_device = local_map(
            self.body,
            in_placements=([embed.y], [embed.params["weight"]]),
            out_placements=[self.plan.y],
            device_mesh=self.axis,
        )
        return per_device(h_BSD, self.embed.weight)

    def body(self, h: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        is_own = self.plan.children["embed"].y == Shard(1)
        h = gather_from_sp(h, self.axis, dim=1) if is_own else copy_to_tp(h, self.axis)  # [B, S, D]
        return linear(h, table)  # [B, S, V/tp]


# The state by name, in sizes: state.py.
SHAPES = {"embed.table": "V D"}

STYLES = {"auto": AutoTied, "typed": TypedTied, "manual": ManualTied}


def build(mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], num_ids: int) -> nn.Module:
    """The layer in one of the three styles; `state`: the global embed.table [V, D], whose first num_ids rows are used.

    Raises ValueError for a table with fewer rows than num_ids, or whose rows tp does not divide.
    """
    check_plan(plan, PLANS)
    check_state(state, SHAPES)

    check_size(state["embed.table"], num_ids)
    return STYLES[style](mesh, plan, state)
