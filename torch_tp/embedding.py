"""Vocab-parallel embedding: y = table[x].

    B batch   S sequence   D features   V rows of the table   N ids, N <= V   tp devices on the axis "tp"

                         vocab_parallel       sequence_parallel
    x_BS per device      [B, S]               [B, S]                  ids, int64: no gradient
    table_VD per device  [V/tp, D]            [V/tp, D]
    y_BSD per device     [B, S, D]            [B, S/tp, D]
    forward              all-reduce y_BSD     reduce-scatter y_BSD
    backward             no collective        all-gather dy_BSD

Each device looks up the ids whose rows it holds and contributes 0 for the others. In the backward pass it needs the
gradient of all tokens, and uses those whose ids fall into its rows.

A vocabulary size that tp does not divide (50257) is padded: V is a multiple of tp, and the rows from N on are zero, are
never looked up, and have a zero gradient. The parameter is the padded table: pad once, to a multiple of every tp in
question (Megatron-LM: 128), and it is the same parameter at every tp. Ids outside [0, N) are rejected on the host, by
`check_ids`; on the devices PyTorch would raise (eagerly), JAX would return NaN, and a masked lookup would return 0.

Sources: Megatron-LM, https://arxiv.org/abs/1909.08053, section 3; sequence parallelism,
https://arxiv.org/abs/2205.05198, section 4.2.2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.experimental import local_map
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module
from torch.nn.functional import embedding

from torch_tp.collectives import reduce_from_tp, reduce_scatter_to_sp
from torch_tp.layouts import Plan, place, to_tensor
from torch_tp.state import check_plan, check_state

PLANS = {
    "vocab_parallel": Plan(x=Replicate(), y=Replicate(), params={"weight": Shard(0)}),
    "sequence_parallel": Plan(x=Replicate(), y=Shard(1), params={"weight": Shard(0)}),
}


def pad_rows(table_ND: np.ndarray, multiple: int) -> np.ndarray:
    """The table with zero rows appended, up to a multiple of `multiple`: 50257 ids and multiple=128 give 50304 rows."""
    num_missing = -len(table_ND) % multiple
    return np.concatenate([table_ND, np.zeros((num_missing, *table_ND.shape[1:]), table_ND.dtype)])


def check_ids(name: str, ids: np.ndarray, num_ids: int, ignored: int | None = None) -> None:
    """Raises ValueError, with the id and its position, for an id outside [0, num_ids) that is not `ignored`."""
    outside = ((ids < 0) | (ids >= num_ids)) & (ids != ignored)
    if outside.any():
        where = tuple(map(int, np.argwhere(outside)[0]))
        also = "" if ignored is None else f" (or {ignored}: ignored)"
        raise ValueError(f"{name}{list(where)} is {ids[where]}: ids are 0 to {num_ids - 1}{also}")


def check_inputs(inputs: Mapping[str, np.ndarray], num_ids: int) -> None:
    """Raises ValueError for ids outside the vocabulary; runs on the host, before the ids are placed."""
    check_ids("x", inputs["x"], num_ids)


def check_rows(mesh: DeviceMesh, table: np.ndarray, axis: str = "tp") -> None:
    """Raises ValueError, with a number of rows that would work, if the axis does not divide the rows of the table."""
    num_rows, size = len(table), mesh[axis].size()
    if num_rows % size:
        problem = f"{axis}={size} does not divide the {num_rows} rows of the table"
        raise ValueError(f"{problem}; pad_rows(table, {size}) would work")


def check_size(table: np.ndarray, num_ids: int) -> None:
    """Raises ValueError for a table with fewer rows than ids."""
    if num_ids > table.shape[0]:
        raise ValueError(f"the table has {table.shape[0]} rows, fewer than the {num_ids} ids")


def check_tokens(num_tokens: int, tp: int) -> None:
    """Raises ValueError, with lengths that would work, for a sequence that sequence parallelism cannot shard."""
    if num_tokens % tp:
        below = num_tokens // tp * tp
        fits = " or ".join(str(size) for size in (below, below + tp) if size)
        raise ValueError(f"tp={tp} does not divide the sequence of {num_tokens} tokens; {fits} would work")


class ShardedEmbedding(nn.Module):
    """The table of the typed and manual layers: a DTensor, laid out as the plan says."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        check_rows(mesh, state["table"])
        self.axis, self.plan = mesh, plan
        self.weight = nn.Parameter(place(state["table"], mesh, plan.params["weight"]))


# ---------------------------------------------------------------------------------------------------------- auto


class PlainEmbedding(nn.Embedding):
    """PyTorch's own layer, unsharded, with the given state: what `parallelize_module` starts from."""

    def __init__(self, device: str, state: Mapping[str, np.ndarray]) -> None:
        V, D = state["table"].shape
        super().__init__(V, D, device="meta")
        self.weight = nn.Parameter(to_tensor(state["table"], device))


class AutoEmbedding(PlainEmbedding):
    """`parallelize_module` shards the table by rows; `forward` is unchanged."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        check_rows(mesh, state["table"])
        super().__init__(mesh.device_type, state)
        self.axis, self.plan = mesh, plan
        style = RowwiseParallel(input_layouts=plan.x, output_layouts=plan.y, use_local_output=False)
        parallelize_module(self, mesh, style)
        shard_gradient(self.weight)

    def forward(self, x_BS: DTensor) -> DTensor:
        if self.plan.y == Shard(1):
            check_tokens(x_BS.shape[1], self.axis.size())
        return super().forward(x_BS)


def shard_gradient(weight: nn.Parameter) -> None:
    """Shard the gradient as the table is: DTensor computes the whole gradient on every device and would leave it so."""
    weight.register_hook(lambda grad: grad.redistribute(placements=weight.placements))


# --------------------------------------------------------------------------------------------------------- typed


class TypedEmbedding(ShardedEmbedding):
    """A lookup in a Shard(0) table has a masked Partial() placement, that `redistribute` reduces or scatters."""

    def forward(self, x_BS: DTensor) -> DTensor:
        if self.plan.y == Shard(1):
            check_tokens(x_BS.shape[1], self.axis.size())
        # A redistribution that moves nothing forward; its transpose shards the gradient, as in shard_gradient.
        table_VD = self.weight.redistribute(placements=[Shard(0)])
        y_BSD = embedding(x_BS, table_VD)  # _MaskPartial()
        return y_BSD.redistribute(placements=[self.plan.y])


# -------------------------------------------------------------------------------------------------------- manual


def masked_rows(ids: torch.Tensor, table: torch.Tensor, first: int) -> torch.Tensor:
    """The row of each id if this shard of the table, which starts at id `first`, has it, else 0.

    [B, S], [V/tp, D] -> [B, S, D]
    """
    own = ids - first
    is_own = (own >= 0) & (own < table.shape[0])  # [B, S]
    rows = embedding(torch.where(is_own, own, 0), table)
    return torch.where(is_own[..., None], rows, 0)


def masked_lookup(ids: torch.Tensor, table: torch.Tensor, axis: DeviceMesh) -> torch.Tensor:
    """table[ids] for ids in this device's rows, else 0: [B, S], [V/tp, D] -> [B, S, D], partial."""
    return masked_rows(ids, table, axis.get_local_rank() * table.shape[0])


class ManualEmbedding(ShardedEmbedding):
    """Masked lookup, then g or its sequence-parallel counterpart."""

    def forward(self, x_BS: DTensor) -> DTensor:
        per_device = local_map(
            self.body,
            in_placements=([self.plan.x], [self.plan.params["weight"]]),
            out_placements=[self.plan.y],
            device_mesh=self.axis,
        )
        return per_device(x_BS, self.weight)

    def body(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        y = masked_lookup(x, table, self.axis)  # [B, S, D]
        if self.plan.y == Shard(1):
            check_tokens(x.shape[1], self.axis.size())
            return reduce_scatter_to_sp(y, self.axis, dim=1)  # [B, S/tp, D]
        return reduce_from_tp(y, self.axis)


# The state by name, in sizes: state.py.
SHAPES = {"table": "V D"}

STYLES = {"auto": AutoEmbedding, "typed": TypedEmbedding, "manual": ManualEmbedding}


def build(mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], num_ids: int) -> nn.Module:
    """The layer in one of the three styles; `state` holds the global table [V, D], whose first num_ids rows are used.

    Raises ValueError for a table with fewer rows than num_ids, or whose rows tp does not divide.
    """
    check_plan(plan, PLANS)
    check_state(state, SHAPES)

    check_size(state["table"], num_ids)
    return STYLES[style](mesh, plan, state)
