"""The JAX side of sharded_worker.py: one process with 4 devices, meshes of 1, 2 and 4 of them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx

from jax_tp import mesh
from jax_tp.layers import LAYERS
from jax_tp.layouts import child, named_parameters, native_name
from jax_tp.tasks import place_batch
from jax_tp.train import loss_and_gradients
from jax_tp.worker import AXIS_TYPES

leave = mesh.leave


def join() -> None:
    jax.config.update("jax_enable_x64", True)
    mesh.join("cpu", 4)


class Logits(nnx.Module):
    """In the place of a model's loss: what it is given."""

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return logits


def gather(
    model: str, options: dict[str, Any], plan: str, style: str, tp: int, arrays: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Logits, loss, and the gradient of every parameter, whole."""
    axes = mesh.make_mesh({"tp": tp}, AXIS_TYPES[style], jax.devices()[:tp])
    layer, params = LAYERS[model], child(arrays, "params")
    with jax.set_mesh(axes):
        module = layer.build(axes, style, layer.PLANS[plan], params, **options)
        batch, target = place_batch(arrays, axes, layer.PLANS[plan])
        order = tuple(batch)

        @nnx.jit
        def step(module, batch, target):  # type: ignore[no-untyped-def]
            return loss_and_gradients(module, {name: batch[name] for name in order}, target)

        done = step(module, batch, target)
        grads = named_parameters(done.param_grads)
        found = {f"{name}.grad": grads[native_name(name)].get_value() for name in sorted(params)}
        module.loss = Logits()
        logits = nnx.jit(lambda module, *inputs: module(*inputs))(module, *batch.values())
        return {name: np.asarray(array) for name, array in {**found, "y": done.y, "logits": logits}.items()}
