"""The JAX side of checkpoint_worker.py: one process with 4 devices, meshes of 1, 2, 3 and 4 of them."""

from __future__ import annotations

import math

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType

from jax_tp import checkpoint, native_checkpoint
from jax_tp.layers import LAYERS
from jax_tp.layouts import child
from jax_tp.mesh import make_mesh
from jax_tp.optimizer import Recipe, make_optimizer, place_optimizer
from jax_tp.tasks import place_batch
from jax_tp.train import train_step
from parity.cases.training import RECIPE

DEGREES = (1, 2, 3, 4)
NATIVE = native_checkpoint
FASTER = {**RECIPE, "peak_rate": 2 * RECIPE["peak_rate"]}  # so that its checkpoints differ from those of `train`


def join():
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)


def leave():
    pass


def is_first():
    return True


def barrier():
    pass


def blank(params):
    return {name: np.zeros_like(value) for name, value in params.items()}


def build(case, params, tp, beside=None):
    """Mesh and module; `beside`: the axis of data parallelism, of size 2."""
    layer, axes = LAYERS[case.layer], {**({beside: 2} if beside else {}), "tp": tp}
    mesh = make_mesh(axes, AxisType.Auto, jax.devices()[: math.prod(axes.values())])
    with jax.set_mesh(mesh):
        return mesh, layer.build(mesh, case.style, layer.PLANS[beside or case.plan], params, **case.options)


def new_training(module, mesh):
    """What `save` and `load` take beside the module."""
    return (new_optimizer(module, mesh, Recipe(**FASTER)),)


def do_steps(case, mesh, module, training, batch, plan):
    recipe = Recipe(**{**RECIPE, "num_microbatches": 1})
    step_once = nnx.jit(lambda module, optimizer, one: train_step(module, optimizer, [one], recipe))
    with jax.set_mesh(mesh):
        for step in range(2):
            one = place_batch(child(batch, f"batch{step}"), mesh, LAYERS[case.layer].PLANS[plan])
            step_once(module, *training, one)


def save(case, params, tp, directory):
    checkpoint.save(directory, list(params), build(case, params, tp)[1])


def bits(module):
    return {
        path: [(shard.data.dtype.name, str(shard.index), np.asarray(shard.data).tobytes()) for shard in shards]
        for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param))
        for shards in [variable.get_value().addressable_shards]
    }


def load(case, params, tp, directory):
    want, module = bits(build(case, params, tp)[1]), build(case, blank(params), tp)[1]
    assert bits(module) != want
    checkpoint.load(directory, list(params), module)
    assert bits(module) == want


def new_optimizer(module, mesh, recipe):
    optimizer = make_optimizer(module, recipe)
    place_optimizer(optimizer, module, mesh)
    return optimizer


def train(case, params, batch, directory):
    """Four steps, and two, a checkpoint, and two more of a module and an optimizer that are new: the same bits."""
    recipe = Recipe(**{**RECIPE, "num_steps": 4, "warmup_steps": 2, "num_microbatches": 1})
    step_once = nnx.jit(lambda module, optimizer, one: train_step(module, optimizer, [one], recipe))
    ends = []
    for interrupted in (False, True):
        mesh, module = build(case, params, 4)
        optimizer = new_optimizer(module, mesh, recipe)
        for step in range(4):
            if interrupted and step == 2:
                checkpoint.save(directory, list(params), module, optimizer)
                mesh, module = build(case, blank(params), 4)
                optimizer = new_optimizer(module, mesh, recipe)
                checkpoint.load(directory, list(params), module, optimizer)
            with jax.set_mesh(mesh):
                one = place_batch(child(batch, f"batch{step}"), mesh, LAYERS[case.layer].PLANS[case.plan])
                step_once(module, optimizer, one)
        ends.append(bits(module))
    assert ends[0] == ends[1]


def reload_optimizer(case, params, source, target):
    """Load at tp = 3 what the other framework saved at 4, and save it again."""
    mesh, module = build(case, blank(params), 3)
    optimizer = new_optimizer(module, mesh, Recipe(**RECIPE))
    checkpoint.load(source, list(params), module, optimizer)
    checkpoint.save(target, list(params), module, optimizer)
