"""A whole training step traced for GPUs that need not exist: what one of them sends, computes and holds.

The step is that of train.py: forward, backward, clipping, AdamW. The model is the one that the cases run, in the same
plan and style, on a fake process group and tensors without data (`mesh.fake_group`).
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import partial
from types import ModuleType
from unittest.mock import patch

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.tensor import DTensor
from torch.optim import AdamW
from torch.utils.checkpoint import checkpoint

from parity.step_contract import Memory, Operation, StepOrder, StepRequest, StepTrace, TracedCollective
from torch_tp import hybrid
from torch_tp.footprint import RecordFootprint
from torch_tp.layers import LAYERS
from torch_tp.layouts import Plan, State
from torch_tp.mesh import DATA_AXES, fake_group, make_mesh
from torch_tp.optimizer import Recipe, make_optimizer
from torch_tp.tasks import place_batch
from torch_tp.train import Batch, train_step, training_loss

# What is sent, computed and held does not depend on these numbers.
RECIPE = Recipe(100, 1, 3e-4, 3e-5, 10, 0.9, 0.95, 1e-8, 0.1, 1.0)

NOTES = (
    "every operator moves its operands and results once: nothing is fused but AdamW, which is one pass",
    "parameters, gradients and moments are held in the dtype of the step; there are no float32 master weights",
    "attention writes its scores [heads, S, S] to memory, in float32 for the softmax",
)


def trace_step(order: StepOrder) -> StepTrace:
    """Trace the step. Raises ValueError as the layers' `build` do."""
    begin_s = time.monotonic()
    request = order.request
    group = fake_group(request.num_devices, request.gpus_per_node)
    with group, patch.object(_fsdp_param, "_chunk_with_empty", Chunks):
        mesh = make_mesh(request.mesh, "cpu")
        layer, plan, prefix = layer_of(request, is_mean=order.batch["target"] == ())
        dtype = getattr(torch, request.dtype)
        state = {prefix + name: torch.empty(shape, dtype=dtype) for name, shape in order.params.items()}
        module = layer.build(mesh, request.style, plan, state, **request.options)
        del state
        if request.recompute:
            checkpoint_blocks(module)
        batch = place_batch(empty_batch(order, dtype), mesh, plan)
        record, memory = run(module, mesh, batch, request.optimizer)
        return StepTrace(
            framework="torch",
            case=request.id,
            collectives=collectives_of(record),
            operations=tuple(Operation(count=count, **asdict(work)) for work, count in record.work.items()),
            memory=memory,
            seconds=time.monotonic() - begin_s,
            notes=NOTES,
        )


@dataclass(frozen=True)
class Chunks:
    """The equal chunks of a tensor along a dim, each created on access.

    `fully_shard` creates one per device and uses one; with a thousand devices that would dominate the time of a trace.
    """

    tensor: torch.Tensor
    num_chunks: int
    dim: int

    def __getitem__(self, index: int) -> torch.Tensor:
        size = self.tensor.shape[self.dim] // self.num_chunks
        return self.tensor.narrow(self.dim, index * size, size)


def layer_of(request: StepRequest, is_mean: bool) -> tuple[ModuleType | hybrid.Hybrid, Plan, str]:
    """The layer or model with its plan on the mesh of the request, and what its parameters' names begin with.

    is_mean: whether y is the mean of a loss.
    """
    layer = LAYERS[request.layer]
    axis = next((axis for axis in request.mesh if axis in DATA_AXES), None)
    if axis is None:
        return layer, layer.PLANS[request.plan], ""
    beside = hybrid.over(layer, request.plan, is_mean)
    return beside, beside.PLANS[axis], "inner."


def checkpoint_blocks(module: nn.Module) -> None:
    """Save only the input of each block, and recompute its forward pass in the backward pass."""
    for block in getattr(module, "inner", module).blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def empty_batch(order: StepOrder, dtype: torch.dtype) -> State:
    """The inputs and the target, without values."""
    return {
        name: torch.empty(shape, dtype=torch.int64 if name in order.ids else dtype)
        for name, shape in order.batch.items()
    }


def run(module: nn.Module, mesh: DeviceMesh, batch: Batch, has_optimizer: bool) -> tuple[RecordFootprint, Memory]:
    """One step, recorded."""
    optimizer, schedule = make_optimizer(module, RECIPE)
    if has_optimizer:
        make_moments(optimizer)
    record, params = RecordFootprint(mesh), list(module.parameters())
    keys = record.ledger.keys
    classes = {"parameters": keys(map(local, params)), "optimizer": keys(states_of(optimizer))}
    with record:
        if has_optimizer:
            train_step(module, optimizer, schedule, [batch], RECIPE)
        else:
            training_loss(module(*batch[0].values()), batch[1]).backward()
    classes["gradients"] = keys(local(param.grad) for param in params if param.grad is not None)
    return record, Memory(**record.ledger.peak(classes), source="torch tracer")


def make_moments(optimizer: AdamW) -> None:
    """Update once with zero gradients: AdamW creates its moments in the first step, and a later one is to be traced.

    Fused, since the other implementations read the step count, which has no value here.
    """
    for group in optimizer.param_groups:
        group["fused"] = True
        for param in group["params"]:
            param.grad = torch.zeros_like(param)
    optimizer.step()
    optimizer.zero_grad()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The shard of this device."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def states_of(optimizer: AdamW) -> list[torch.Tensor]:
    """The local shards of all moments, and the counts of steps."""
    return [local(tensor) for state in optimizer.state.values() for tensor in state.values()]


def collectives_of(record: RecordFootprint) -> tuple[TracedCollective, ...]:
    """Equal calls merged and counted, in order of their first occurrence."""
    counts: dict[TracedCollective, int] = {}
    for call in record.calls:
        traced = TracedCollective(**asdict(call))
        counts[traced] = counts.get(traced, 0) + 1
    return tuple(TracedCollective(**{**asdict(traced), "count": count}) for traced, count in counts.items())
