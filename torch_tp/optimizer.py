"""AdamW with warm-up, cosine decay and clipping by the global norm: one rule, every hyperparameter explicit.

    t      number of the step, from 1        N, W    number of steps, of warm-up steps

    lr     = peak t / W                                              t <= W
             end + (peak - end) (1 + cos(pi (t - W) / (N - W))) / 2  after
    norm   = sqrt(sum of g^2 over all elements of all parameters)
    g      = g min(1, max_norm / (norm + 1e-6))
    m      = b1 m + (1 - b1) g
    v      = b2 v + (1 - b2) g^2
    p      = p - lr weight_decay p - lr m' / (sqrt(v') + eps),       m' = m / (1 - b1^t), v' = v / (1 - b2^t)

    what differs            torch                             optax
    weight_decay            1e-2                              1e-4
    eps                     added to the root                 added to the root; `eps_root` (0) is added under it
    clipping                divides by norm + 1e-6            divides by norm, only if norm >= max_norm
    schedule                sets `lr` of the optimizer        a function of an int32 count; optax's own give float32
    1 - b^t                 in Python, float64                in float32 unless `jax_enable_x64`

Parameters, gradients and moments have the same layout, so each device updates its own shards; only the norm is sent.
Sources: Loshchilov & Hutter, https://arxiv.org/abs/1711.05101; Pascanu et al., https://arxiv.org/abs/1211.5063.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from torch import nn
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


class Recipe(NamedTuple):
    """The hyperparameters of training."""

    num_steps: int
    num_microbatches: int  # per step; their gradients are averaged
    peak_rate: float
    end_rate: float
    warmup_steps: int
    b1: float
    b2: float
    eps: float
    weight_decay: float
    max_norm: float
    record_every: int = 1  # steps between records of parameters and moments


def learning_rate(count: int, recipe: Recipe) -> float:
    """lr after `count` steps, for step number t = count + 1: linear warm-up, then half a cosine down to the end."""
    step, warmup = count + 1, recipe.warmup_steps
    if step <= warmup:
        return recipe.peak_rate * step / warmup
    progress = min((step - warmup) / (recipe.num_steps - warmup), 1.0)
    return recipe.end_rate + (recipe.peak_rate - recipe.end_rate) * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(module: nn.Module, recipe: Recipe) -> tuple[AdamW, LambdaLR]:
    """AdamW over the module's current parameters, and its schedule.

    Build it after the module is sharded: `parallelize_module` replaces the parameters, and an optimizer that holds the
    old ones updates nothing.
    """
    optimizer = AdamW(
        module.parameters(),
        lr=1.0,  # times the schedule
        betas=(recipe.b1, recipe.b2),
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
    )
    return optimizer, LambdaLR(optimizer, partial(learning_rate, recipe=recipe))


def moments(optimizer: AdamW, module: nn.Module) -> tuple[dict[str, DTensor], dict[str, DTensor]]:
    """(m, v) by the parameter's path in the module, for the parameters that the optimizer has updated."""
    states = {name: optimizer.state[param] for name, param in module.named_parameters() if param in optimizer.state}
    return (
        {name: state["exp_avg"] for name, state in states.items()},
        {name: state["exp_avg_sq"] for name, state in states.items()},
    )


def global_norm(grads: Iterable[DTensor]) -> DTensor:
    """The norm of all gradients: squares of sharded ones are summed over their devices, replicated ones count once.

    One all-reduce, with a scalar per sharded gradient. Given all gradients at once, `get_total_norm` would also send a
    scalar per replicated one.
    """
    alike: dict[tuple[bool, ...], list[DTensor]] = {}  # by the mesh axes that shard them
    for grad in grads:  # `is_shard` would say no of a `_StridedShard`, what `fully_shard` cuts within a tp shard
        alike.setdefault(tuple(not placement.is_replicate() for placement in grad.placements), []).append(grad)
    norms = [get_total_norm(group) for group in alike.values()]
    return get_total_norm([norm.redistribute(placements=[Replicate()] * norm.device_mesh.ndim) for norm in norms])


def clip_by_global_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> DTensor:
    """Scale all gradients by min(1, max_norm / (norm + 1e-6)); returns the norm before."""
    parameters = list(parameters)
    norm = global_norm(param.grad for param in parameters)
    clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
