"""One step of training: the loss, its gradients by the parameters and by the inputs, and the update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import loss_parallel
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.profiler import record_function

from torch_tp.optimizer import Recipe, clip_by_global_norm


class Step(NamedTuple):
    """The results of a step; each gradient has the layout of what it is the gradient of."""

    loss: DTensor
    y: DTensor
    input_grads: dict[str, DTensor]  # of the inputs that have one: integers (ids, labels) and constants do not
    param_grads: dict[str, DTensor]  # by the parameter's path in the module


class Update(NamedTuple):
    """What a training step reports about the parameters as they were before the update."""

    loss: DTensor
    norm: DTensor  # of the gradient, before clipping


Batch = tuple[Mapping[str, DTensor], DTensor]  # inputs by name, target


def squared_error(y: DTensor, target: DTensor) -> DTensor:
    """½ Σ (y - target)² over all elements, computed in at least float32 so that bfloat16 is not summed in bfloat16.

    y, target: the same global shape and layout. For a sharded y this issues one all-reduce of a scalar.
    """
    wide = torch.promote_types(y.dtype, torch.float32)
    total = 0.5 * (y.to(wide) - target.to(wide)).square().sum()
    return total.redistribute(placements=[Replicate()] * total.device_mesh.ndim)


def training_loss(y: DTensor, target: DTensor) -> DTensor:
    """The loss: y itself if it is a scalar, as for a model, else ½ Σ (y - target)²."""
    return squared_error(y, target) if y.ndim else y


def loss_and_gradients(
    module: nn.Module, inputs: Mapping[str, DTensor], target: DTensor, constants: Sequence[str] = ()
) -> Step:
    """Forward and backward of ½ Σ (module(*inputs) - target)²; no gradients for the inputs named in `constants`.

    The leaves of the graph are local tensors, as in a training script: `from_local` then all-reduces gradients that are
    still partial sums, which a DTensor leaf would not.
    """
    module.zero_grad()
    leaves = {name: tensor.to_local().detach() for name, tensor in inputs.items()}
    for name, leaf in leaves.items():
        leaf.requires_grad_(leaf.is_floating_point() and name not in constants)
    with loss_parallel():  # torch.nn.functional.cross_entropy of sharded logits needs it forward and backward
        y = module(*(like(leaf, inputs[name]) for name, leaf in leaves.items()))
        loss = squared_error(y, target)
        loss.backward()
    return Step(
        loss.detach(),
        y.detach(),
        {name: like(leaf.grad, inputs[name]) for name, leaf in leaves.items() if leaf.grad is not None},
        {name: param.grad for name, param in module.named_parameters()},
    )


def train_step(
    module: nn.Module, optimizer: AdamW, schedule: LambdaLR, microbatches: Sequence[Batch], recipe: Recipe
) -> Update:
    """Update the parameters once, by the mean of the microbatches' gradients, which accumulate in `.grad`.

    The name "optimizer" tells profilers and our trace which collectives are those of the update.
    """
    optimizer.zero_grad()
    losses = []
    for inputs, target in microbatches:
        with loss_parallel():
            loss = training_loss(module(*inputs.values()), target) / len(microbatches)
            loss.backward()
        losses.append(loss.detach())
    with record_function("optimizer"):
        norm = clip_by_global_norm(module.parameters(), recipe.max_norm)
        optimizer.step()
        schedule.step()
    return Update(sum(losses), norm)


def like(local: torch.Tensor, other: DTensor) -> DTensor:
    """A local shard as a DTensor with the global shape and layout of another."""
    return DTensor.from_local(
        local, other.device_mesh, other.placements, run_check=False, shape=other.shape, stride=other.stride()
    )
