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

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_tp.layouts import named_parameters, place


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


def learning_rate(count: jax.Array, recipe: Recipe) -> jax.Array:
    """lr after `count` steps, for step number t = count + 1: linear warm-up, then half a cosine down to the end.

    `optax.warmup_cosine_decay_schedule` is the same curve, but in float32 even if the parameters are float64.
    """
    step, warmup = count.astype(jnp.result_type(float)) + 1, recipe.warmup_steps
    progress = jnp.minimum((step - warmup) / (recipe.num_steps - warmup), 1.0)
    after = recipe.end_rate + (recipe.peak_rate - recipe.end_rate) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(step <= warmup, recipe.peak_rate * step / warmup, after)


def make_optimizer(module: nnx.Module, recipe: Recipe) -> nnx.Optimizer:
    """AdamW over the module's parameters, with its schedule.

    The moments start as `zeros_like` of the parameters and so have the same sharding.
    """
    transformation = optax.adamw(
        partial(learning_rate, recipe=recipe),
        b1=recipe.b1,
        b2=recipe.b2,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
    )
    return nnx.Optimizer(module, transformation, wrt=nnx.Param)


def moments(optimizer: nnx.Optimizer) -> tuple[dict[str, nnx.Variable], dict[str, nnx.Variable]]:
    """(m, v) by the parameter's path in the module."""
    adam = optimizer.opt_state[0]
    return named_parameters(adam.mu), named_parameters(adam.nu)


def place_optimizer(optimizer: nnx.Optimizer, module: nnx.Module, mesh: Mesh) -> None:
    """Place the whole state on the mesh: moments laid out as the parameters, step counts replicated.

    Works on arrays and, like the module, on shapes only (`nnx.eval_shape` of `make_optimizer`).
    """
    params = named_parameters(nnx.state(module, nnx.Param))
    specs = {name: param.get_value().sharding.spec for name, param in params.items()}
    state = nnx.to_flat_state(nnx.state(optimizer))
    for path, variable in state:
        value, name = variable.get_value(), ".".join(map(str, path[3:]))  # "opt_state", 0, "mu", then the parameter's
        if isinstance(value, jax.ShapeDtypeStruct):
            variable.set_value(place(value, mesh, specs.get(name, P())))
        elif name not in specs:
            variable.set_value(place(np.asarray(value), mesh, P()))
    nnx.update(optimizer, nnx.from_flat_state(state))


def global_norm(grads: nnx.State) -> jax.Array:
    """The norm of all gradients: squares of sharded ones are summed over their devices, replicated ones count once.

    One all-reduce, with a scalar per sharded gradient. In `optax.tree.norm`, the sum of all squares, XLA merges the
    all-reduces of neighbouring terms, so that the number of scalars depends on the order of the parameters.
    """
    return jnp.linalg.norm(jnp.stack([jnp.sqrt(jnp.sum(jnp.square(grad))) for grad in jax.tree.leaves(grads)]))


def clip_by_global_norm(grads: nnx.State, max_norm: float) -> tuple[nnx.State, jax.Array]:
    """All gradients times min(1, max_norm / (norm + 1e-6)), and the norm before."""
    norm = global_norm(grads)
    scale = jnp.minimum(max_norm / (norm + 1e-6), 1.0)
    return jax.tree.map(lambda grad: grad * scale, grads), norm
