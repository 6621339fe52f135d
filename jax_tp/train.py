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
    """The results of a step; each gradient has the layout of what it is the gradient of."""

    loss: jax.Array
    y: jax.Array
    input_grads: dict[str, jax.Array]  # of the inputs that have one: integers (ids, labels) and constants do not
    param_grads: nnx.State


class Update(NamedTuple):
    """What a training step reports about the parameters as they were before the update."""

    loss: jax.Array
    norm: jax.Array  # of the gradient, before clipping


Batch = tuple[Mapping[str, jax.Array], jax.Array]  # inputs by name, target


def squared_error(y: jax.Array, target: jax.Array) -> jax.Array:
    """½ Σ (y - target)² over all elements, computed in at least float32 so that bfloat16 is not summed in bfloat16.

    y, target: the same global shape and layout. For a sharded y this issues one all-reduce of a scalar.
    """
    wide = jnp.promote_types(y.dtype, jnp.float32)
    return 0.5 * jnp.square(y.astype(wide) - target.astype(wide)).sum()


def training_loss(y: jax.Array, target: jax.Array) -> jax.Array:
    """The loss: y itself if it is a scalar, as for a model, else ½ Σ (y - target)²."""
    return squared_error(y, target) if y.ndim else y


def leaves_of(inputs: Mapping[str, jax.Array], constants: Sequence[str]) -> dict[str, jax.Array]:
    """The inputs that need a gradient."""
    return {
        name: array
        for name, array in inputs.items()
        if jnp.issubdtype(array.dtype, jnp.floating) and name not in constants
    }


def loss_and_gradients(
    module: nnx.Module, inputs: Mapping[str, jax.Array], target: jax.Array, constants: Sequence[str] = ()
) -> Step:
    """Forward and backward of ½ Σ (module(*inputs) - target)²; no gradients for the inputs named in `constants`."""
    leaves = leaves_of(inputs, constants)

    def forward(module: nnx.Module, leaves: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        y = module(*{**inputs, **leaves}.values())
        return squared_error(y, target), y

    differentiated = nnx.value_and_grad(forward, argnums=(0, 1), has_aux=True)
    (loss, y), (param_grads, input_grads) = differentiated(module, leaves)
    return Step(loss, y, input_grads, param_grads)


def train_step(module: nnx.Module, optimizer: nnx.Optimizer, microbatches: Sequence[Batch], recipe: Recipe) -> Update:
    """Update the parameters once, by the mean of the microbatches' gradients.

    Each microbatch starts when the gradients of the previous one are complete, so that only one
    microbatch's activations are held. Without the barrier XLA would interleave all of them, gather parameters once for
    all, and add losses and gradients before reducing them.
    The name "optimizer" tells profilers and our trace which collectives are those of the update.
    """

    def part(inputs: Mapping[str, jax.Array], target: jax.Array) -> tuple[jax.Array, nnx.State]:
        def forward(module: nnx.Module) -> jax.Array:  # as an argument the dict would come back with its keys sorted
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
