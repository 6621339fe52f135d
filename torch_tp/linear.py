"""Linear layer, column- or row-parallel: y = x w + b.

    B batch   S sequence   D features in   F features out   tp devices on the axis "tp"

                      column-parallel: w = [w_0 | w_1 | ...]     row-parallel: w = [w_0 / w_1 / ...]
    w_DF per device   [D, F/tp]                                  [D/tp, F]
    x_BSD per device  [B, S, D]                                  [B, S, D/tp]
    y_BSF per device  [B, S, F/tp]                               [B, S, F]
    forward           no collective                              all-reduce y_BSF
    backward          all-reduce dx_BSD                          no collective

Under sequence parallelism the input and output of the column-row pair are sharded on S, [B, S/tp, ...]. Each all-reduce
becomes a reduce-scatter and an all-gather, with the same number of bytes on the wire.

                      column_sequence_parallel                   row_sequence_parallel
    forward           all-gather x_BSD                           reduce-scatter y_BSF
    backward          reduce-scatter dx_BSD                      all-gather dy_BSF, all-reduce db_F

The gathered x is saved for the gradient of w rather than gathered again in the backward pass. Each device adds a
row-parallel bias to its own tokens only, so db is a partial sum over tokens and must be all-reduced.

`gather_output` appends an all-gather of y to the column-parallel layer; `split_input` prepends a split of x to the
row-parallel layer (its transpose gathers dx). The bias of a row-parallel layer is added once, after the reduction.

Sources: Megatron-LM, https://arxiv.org/abs/1909.08053, section 3; sequence parallelism,
https://arxiv.org/abs/2205.05198, section 4.2.2.
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

from torch_tp.collectives import (
    copy_to_tp,
    gather_from_sp,
    gather_from_tp,
    reduce_from_tp,
    reduce_scatter_to_sp,
    split_to_tp,
)
from torch_tp.layouts import Plan, place, to_tensor
from torch_tp.state import check_plan, check_state

# PyTorch stores the weight as [out, in]: the output features are dim 0, the input features dim 1.
COLUMN = {"weight": Shard(0), "bias": Shard(0)}
ROW = {"weight": Shard(1), "bias": Replicate()}

PLANS = {
    "column_parallel": Plan(x=Replicate(), y=Shard(2), params=COLUMN),
    "column_parallel_gather_output": Plan(x=Replicate(), y=Replicate(), params=COLUMN),
    "column_sequence_parallel": Plan(x=Shard(1), y=Shard(2), params=COLUMN),
    "row_parallel": Plan(x=Shard(2), y=Replicate(), params=ROW),
    "row_parallel_split_input": Plan(x=Replicate(), y=Replicate(), params=ROW),
    "row_sequence_parallel": Plan(x=Shard(2), y=Shard(1), params=ROW),
}


def is_row(plan: Plan) -> bool:
    """Whether the plan shards the input features of the weight."""
    return plan.params["weight"] == Shard(1)


class ShardedLinear(nn.Module):
    """The parameters of the typed and manual layers: DTensors, laid out as the plan says."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.axis, self.plan = mesh, plan
        self.weight = nn.Parameter(place(state["w"].T, mesh, plan.params["weight"]))
        self.bias = nn.Parameter(place(state["b"], mesh, plan.params["bias"])) if "b" in state else None
        self.placements = [plan.params["weight"]], None if self.bias is None else [plan.params["bias"]]


# ---------------------------------------------------------------------------------------------------------- auto


class PlainLinear(nn.Linear):
    """PyTorch's own layer, unsharded, with the given state: what `parallelize_module` starts from."""

    def __init__(self, device: str, state: Mapping[str, np.ndarray]) -> None:
        D, F = state["w"].shape
        super().__init__(D, F, bias="b" in state, device="meta")
        self.weight = nn.Parameter(to_tensor(state["w"].T, device))
        if "b" in state:
            self.bias = nn.Parameter(to_tensor(state["b"], device))
        self.is_bias_last = False

    def forward(self, x_BSD: DTensor) -> DTensor:
        return linear(x_BSD, self.weight, None if self.is_bias_last else self.bias)

    def add_bias_last(self) -> None:
        """Register a hook, after those of `parallelize_module`, that adds the bias once, to the reduced output.

        `RowwiseParallel` by itself splits the bias into partial sums of b/tp, which rounds for tp = 3. And where the
        output is reduce-scattered, it computes db from all tokens on every device; here, as in the other styles, each
        device uses its own tokens and F numbers are all-reduced.
        """
        self.is_bias_last = True
        if self.bias is not None:
            self.register_forward_hook(lambda _, x_BSD, y_BSF: y_BSF + self.bias.redistribute(placements=[Replicate()]))


class AutoColumnLinear(PlainLinear):
    """`parallelize_module` shards the parameters and places the input and the output; `forward` is unchanged."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__(mesh.device_type, state)
        style = ColwiseParallel(input_layouts=plan.x, output_layouts=plan.y, use_local_output=False)
        parallelize_module(self, mesh, style)


class AutoRowLinear(PlainLinear):
    """The row-parallel layer. `use_local_output=False` keeps y a DTensor, so that its layout can be reported."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, state: Mapping[str, np.ndarray]) -> None:
        super().__init__(mesh.device_type, state)
        style = RowwiseParallel(input_layouts=plan.x, output_layouts=plan.y, use_local_output=False)
        parallelize_module(self, mesh, style)
        self.add_bias_last()


# --------------------------------------------------------------------------------------------------------- typed


class TypedColumnLinear(ShardedLinear):
    """The product of a replicated x and a column-sharded w has the placement Shard(2); nothing is sent."""

    def forward(self, x_BSD: DTensor) -> DTensor:
        if self.plan.x == Shard(1):
            x_BSD = x_BSD.redistribute(placements=[Replicate()])
        y_BSF = linear(x_BSD, self.weight, self.bias)  # Shard(2)
        return y_BSF.redistribute(placements=[self.plan.y])


class TypedRowLinear(ShardedLinear):
    """The product over a sharded D has the placement Partial(), which `redistribute` turns into y by an all-reduce."""

    def forward(self, x_BSD: DTensor) -> DTensor:
        x_BSD = x_BSD.redistribute(placements=[Shard(2)])
        y_BSF = linear(x_BSD, self.weight)  # Partial()
        y_BSF = y_BSF.redistribute(placements=[self.plan.y])
        # A no-op in the forward pass; in the backward pass it all-reduces the Partial() gradient of the bias.
        return y_BSF if self.bias is None else y_BSF + self.bias.redistribute(placements=[Replicate()])


# -------------------------------------------------------------------------------------------------------- manual


class ManualLinear(ShardedLinear):
    """`body` is the per-device code; it sees the shards that the plan assigns to the device."""

    def forward(self, x_BSD: DTensor) -> DTensor:
        per_device = local_map(
            self.body,
            in_placements=([self.plan.x], *self.placements),
            out_placements=[self.plan.y],
            device_mesh=self.axis,
        )
        return per_device(x_BSD, self.weight, self.bias)

    @abstractmethod
    def body(self, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        """Compute this device's y from its x; the subclasses' comments give the shapes of the shards."""


class ManualColumnLinear(ManualLinear):
    """f, then the product with this device's columns of w."""

    def body(self, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        x = gather_from_sp(x, self.axis, dim=1) if self.plan.x == Shard(1) else copy_to_tp(x, self.axis)  # [B, S, D]
        y = linear(x, w, b)  # [B, S, F/tp]
        return y if self.plan.y == Shard(2) else gather_from_tp(y, self.axis, dim=2)


class ManualRowLinear(ManualLinear):
    """The product with this device's rows of w, then g. The bias comes last, or it would be added tp times."""

    def body(self, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        x = x if self.plan.x == Shard(2) else split_to_tp(x, self.axis, dim=2)  # [B, S, D/tp]
        y = linear(x, w)  # [B, S, F], partial
        if self.plan.y == Shard(1):
            y = reduce_scatter_to_sp(y, self.axis, dim=1)  # [B, S/tp, F]
            return y if b is None else y + copy_to_tp(b, self.axis)
        y = reduce_from_tp(y, self.axis)  # [B, S, F]
        return y if b is None else y + b


# The state by name, in sizes: state.py.
SHAPES = {"w": "D F", "b?": "F"}

STYLES = {
    "auto": (AutoColumnLinear, AutoRowLinear),
    "typed": (TypedColumnLinear, TypedRowLinear),
    "manual": (ManualColumnLinear, ManualRowLinear),
}


def build(mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray]) -> nn.Module:
    """The layer in one of the three styles; `state` holds the global w [D, F] and, if the layer has one, b [F]."""
    check_plan(plan, PLANS)
    check_state(state, SHAPES)

    return STYLES[style][is_row(plan)](mesh, plan, state)
