"""One step of training: the loss, its gradients by the parameters and by the inputs, and the update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import add
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import optimization_barrier

from jax_tp.optimizer import Recipe, clip_by_global_norm


class Step(NamedTuple):
    """What a step gives; gradients are laid out as what they are the gradients of."""

    loss: jax.Array
    y: jax.Array
    input_grads: dict[str, jax.Array]  # of the inputs that have one: integers (ids, labels) and constants do not
    param_grads: nnx.State


class Update(NamedTuple):
    """What a step of training tells: of the parameters as they were before it."""

    loss: jax.Array
    norm: jax.Array  # of the gradient, before clipping


Batch = tuple[Mapping[str, jax.Array], jax.Array]  # inputs by name, target


def squared_error(y: jax.Array, target: jax.Array) -> jax.Array:
    """½ Σ (y - target)² over all elements; at least float32 inside: bfloat16 outputs are not summed in bfloat16.

    y, target: the same global shape and layout. A sharded y makes this one all-reduce of a scalar.
    """
    wide = jnp.promote_types(y.dtype, jnp.float32)
    return 0.5 * jnp.square(y.astype(wide) - target.astype(wide)).sum()


def training_loss(y: jax.Array, target: jax.Array) -> jax.Array:
    """What training minimises: y itself where it is a loss, a scalar, as that of a model is; else ½ Σ (y - target)²."""
    return squared_error(y, target) if y.ndim else y


def leaves_of(inputs: Mapping[str, jax.Array], constants: Sequence[str]) -> dict[str, jax.Array]:
    """The inputs that a gradient is wanted of."""
    return {
        name: array
        for name, array in inputs.items()
        if jnp.issubdtype(array.dtype, jnp.floating) and name not in constants
    }


def loss_and_gradients(
    module: nnx.Module, inputs: Mapping[str, jax.Array], target: jax.Array, constants: Sequence[str] = ()
) -> Step:
    """Forward and backward of ½ Σ (module(*inputs) - target)²; no gradient of the `constants` among the inputs."""
    leaves = leaves_of(inputs, constants)

    def forward(module: nnx.Module, leaves: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        y = module(*{**inputs, **leaves}.values())
        return squared_error(y, target), y

    differentiated = nnx.value_and_grad(forward, argnums=(0, 1), has_aux=True)
    (loss, y), (param_grads, input_grads) = differentiated(module, leaves)
    return Step(loss, y, input_grads, param_grads)


def train_step(module: nnx.Module, optimizer: nnx.Optimizer, microbatches: Sequence[Batch], recipe: Recipe) -> Update:
    """Move the parameters once, by the mean of the microbatches' gradients.

    A microbatch begins when the gradients of the one before are there, so that the memory of one's activations is
    enough. Without the barrier XLA would do all of them at once, gather parameters once for all, and add up losses and
    gradients before it reduces them.
    The name "optimizer" tells profilers and our trace which collectives are those of the update.
    """

    def part(inputs: Mapping[str, jax.Array], target: jax.Array) -> tuple[jax.Array, nnx.State]:
        def forward(module: nnx.Module) -> jax.Array:  # a dict that is an argument would come with its keys sorted
            return training_loss(module(*inputs.values()), target) / len(microbatches)

        return nnx.value_and_grad(forward)(module)

    total = None
    for batch in microbatches:
        own = part(*batch)
        total = own if total is None else jax.tree.map(add, total, own)
        total, params = optimization_barrier((total, nnx.state(module, nnx.Param)))
        nnx.update(module, params)
    loss, grads = total
    with jax.named_scope("optimizer"):
        clipped, norm = clip_by_global_norm(grads, recipe.max_norm)
        optimizer.update(module, clipped)
    return Update(loss, norm)
