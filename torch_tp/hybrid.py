"""Data parallelism beside tensor parallelism: any layer or model on a mesh (dp | fsdp) x tp, or dp x (x, y).

    x_shard = x[its part of the batch]          y_shard = inner(x_shard)         dw = sum over the axis of inner's dw

    B batch   N elements of a parameter as the tp plan shards it: all of it, or its 1/tp   dp, fsdp, tp devices per axis

                           dp                                 fsdp
    x per device           [B/dp, ...]                        [B/fsdp, ...]
    parameter per device   as the tp plan has it: N           N/fsdp, cut along its output dim, within the tp shard
    forward                what inner sends for B/dp          the same for B/fsdp, and an all-gather of N per parameter
    backward               the same,                          the same, the all-gather again (the whole parameter is not
                           and an all-reduce of N             kept in between), and a reduce-scatter of N
                           per parameter

Tensor parallelism needs the fast links, so its axis is the last of the mesh, whose devices are neighbours.
Beside a grid (grid/) the batch is sharded over dp and then over x, x is [B/dp/X, ...] per device, and N is a device's
block of a parameter, 1/(X Y) or 1/Y of it.

A model's y is a mean over the labels that are not ignored. Their number differs between the parts of the batch, so y is
the weighted mean of the parts' means: two more all-reduces of a scalar. A part without such labels makes y NaN.

`fully_shard` gathers all parameters of a block at once, in the backward pass also those that are not read.
It takes layers of any style unchanged: their DTensors only refer to the axes of tensor parallelism.

Sources: FSDP, https://arxiv.org/abs/2304.11277, and ZeRO, https://arxiv.org/abs/1910.02054;
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html;
torch.distributed._composable.replicate_with_fsdp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from torch_tp.collectives import reduce_from_tp
from torch_tp.cross_entropy import IGNORED
from torch_tp.layouts import Layout, Plan, child, placements_of
from torch_tp.mesh import DATA_AXES


def on_batch(layout: Layout, has_batch: bool = True) -> Layout:
    """A layout over tp as one over (axis, tp): the axis shards the first dim, the batch, or nothing."""
    return (Shard(0) if has_batch else Replicate(), *placements_of(layout))


@dataclass(frozen=True)
class Hybrid:
    """A layer or model in one of its tp plans, with data parallelism; an entry of LAYERS like any layer."""

    layer: ModuleType
    plan: str
    is_mean: bool  # y is a mean over labels, without a batch dim

    @property
    def PLANS(self) -> dict[str, Plan]:  # noqa: N802  a layer's name for it
        inner = self.layer.PLANS[self.plan]
        plan = Plan(
            x=on_batch(inner.x),
            y=on_batch(inner.y, not self.is_mean),
            inputs={name: on_batch(layout) for name, layout in inner.inputs.items() if name != "step"},
            constants=inner.constants,
            children={"inner": inner},
        )
        return dict.fromkeys(DATA_AXES, plan)

    def check_inputs(self, inputs: Mapping[str, np.ndarray], **options: Any) -> None:
        """As the layer does it."""
        if hasattr(self.layer, "check_inputs"):
            self.layer.check_inputs(inputs, **options)

    def build(
        self, mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], **options: Any
    ) -> nn.Module:
        """The layer in the given style on tp or x and y, data-parallel over the other axis; `state`: that of "inner".

        Raises ValueError as the layer's `build` does, for a parameter that the axis does not divide, and for dropout.
        """
        if options.get("drop_rate"):
            raise ValueError("drop_rate: the masks would be the same for each part of the batch; 0 would work")
        axis = next(name for name in mesh.mesh_dim_names or () if name in DATA_AXES)
        inner = self.layer.build(inner_mesh(mesh), style, plan.children["inner"], child(state, "inner"), **options)
        return DataParallel(mesh, axis, inner, self.is_mean)


class DataParallel(nn.Module):
    """The inner module on this device's part of the batch; its parameters are sharded (fsdp) or replicated (dp)."""

    def __init__(self, mesh: DeviceMesh, axis: str, inner: nn.Module, is_mean: bool) -> None:
        super().__init__()
        check_divisible(inner, axis, mesh[axis].size())
        self.mesh, self.axis, self.is_mean = mesh, axis, is_mean
        share_out: Callable[[nn.Module], Any] = {
            "dp": lambda module: replicate(module, mesh=mesh[axis]),
            "fsdp": lambda module: fully_shard(module, mesh=mesh[axis], reshard_after_forward=True),
        }[axis]
        for layer in getattr(inner, "blocks", ()):
            share_out(layer)  # so that blocks are gathered and freed one by one
        share_out(inner)
        for module in inner.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # the loss is a sum over the batch, and so are its gradients
                module.set_force_sum_reduction_for_comms(True)
        self.inner = inner

    def forward(self, *inputs: DTensor) -> DTensor:
        inner = inner_mesh(self.mesh)
        parts = [DTensor.from_local(x.to_local(), inner, x.placements[1:], run_check=False) for x in inputs]
        y = self.inner(*parts)
        shard = y.to_local()
        if self.is_mean:
            shard = self.mean_of_means(shard, parts[-1])
        return DTensor.from_local(shard, self.mesh, on_batch(y.placements, not self.is_mean), run_check=False)

    def mean_of_means(self, mean: torch.Tensor, labels: DTensor) -> torch.Tensor:
        """The mean over the whole batch from the mean of this device's part: [] -> []."""
        axis = self.mesh[self.axis]
        if labels.is_floating_point():  # a field, all of whose elements count
            return reduce_from_tp(mean / axis.size(), axis)
        count = (labels.to_local() != IGNORED).sum().to(mean.dtype)
        for name, placement in zip(labels.device_mesh.mesh_dim_names or (), labels.placements, strict=True):
            if placement.is_shard():  # the grid shards its part of the batch further
                count = reduce_from_tp(count, self.mesh[name])
        return reduce_from_tp(mean * (count / reduce_from_tp(count, axis)), axis)


def inner_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The axes of tensor parallelism: tp, or x and y."""
    return mesh[tuple(name for name in mesh.mesh_dim_names or () if name not in DATA_AXES)]


def check_divisible(inner: nn.Module, axis: str, size: int) -> None:
    """Raises ValueError for a parameter that the axis does not divide: `fully_shard` would pad it, JAX cannot."""
    for name, param in inner.named_parameters():
        rows = param.to_local().shape[0]
        if axis == "fsdp" and rows % size:
            raise ValueError(f"fsdp={size} does not divide the {rows} outputs of {name} that a tp shard has")


def over(layer: ModuleType, plan: str, is_mean: bool = False) -> Hybrid:
    """The layer or model, in this tp plan, on a mesh (dp | fsdp) x tp. is_mean: whether y is the mean of a loss."""
    return Hybrid(layer, plan, is_mean)
