"""The torch side of checkpoint_worker.py: 4 processes, whose mesh (dp, tp) has every tp degree that divides 4."""

from __future__ import annotations

import numpy as np
import torch.distributed as dist

from parity.cases.training import RECIPE
from torch_tp import checkpoint, mesh, native_checkpoint
from torch_tp.layers import LAYERS
from torch_tp.layouts import child, describe
from torch_tp.mesh import make_mesh
from torch_tp.optimizer import Recipe, make_optimizer
from torch_tp.tasks import place_batch
from torch_tp.train import train_step

DEGREES = (1, 2, 4)


NATIVE = native_checkpoint
FASTER = {**RECIPE, "peak_rate": 2 * RECIPE["peak_rate"]}  # so that its checkpoints differ from those of `train`
leave = mesh.leave


def join():
    mesh.join("cpu")


def is_first():
    return dist.get_rank() == 0


def barrier():
    dist.barrier()


def blank(params):
    return {name: np.zeros_like(value) for name, value in params.items()}


def build(case, params, tp, beside=None):
    """Mesh and module; `beside`: the axis of data parallelism, of size 2."""
    layer = LAYERS[case.layer]
    if beside:
        mesh = make_mesh({beside: 2, "tp": tp}, "cpu")
    else:
        mesh = make_mesh({"tp": 4}, "cpu") if tp == 4 else make_mesh({"dp": 4 // tp, "tp": tp}, "cpu")["tp"]
    return mesh, layer.build(mesh, case.style, layer.PLANS[beside or case.plan], params, **case.options)


def new_training(module, _mesh):
    """What `save` and `load` take beside the module."""
    return make_optimizer(module, Recipe(**FASTER))


def do_steps(case, mesh, module, training, batch, plan):
    recipe = Recipe(**{**RECIPE, "num_microbatches": 1})
    for step in range(2):
        one = place_batch(child(batch, f"batch{step}"), mesh, LAYERS[case.layer].PLANS[plan])
        train_step(module, *training, [one], recipe)


def save(case, params, tp, directory):
    checkpoint.save(directory, list(params), build(case, params, tp)[1])


def bits(module):
    held = {name: describe(param) for name, param in module.named_parameters()}
    return {name: (values.tobytes(), values.dtype.name, index) for name, (values, index, _) in held.items()}


def load(case, params, tp, directory):
    want, module = bits(build(case, params, tp)[1]), build(case, blank(params), tp)[1]
    assert bits(module) != want
    checkpoint.load(directory, list(params), module)
    assert bits(module) == want


def train(case, params, batch, directory):
    """Four steps, and two, a checkpoint, and two more of a module and an optimizer that are new: the same bits."""
    recipe = Recipe(**{**RECIPE, "num_steps": 4, "warmup_steps": 2, "num_microbatches": 1})
    ends = []
    for interrupted in (False, True):
        mesh, module = build(case, params, 4)
        optimizer, schedule = make_optimizer(module, recipe)
        for step in range(4):
            if interrupted and step == 2:
                checkpoint.save(directory, list(params), module, optimizer, schedule)
                mesh, module = build(case, blank(params), 4)
                optimizer, schedule = make_optimizer(module, recipe)
                checkpoint.load(directory, list(params), module, optimizer, schedule)
            one = place_batch(child(batch, f"batch{step}"), mesh, LAYERS[case.layer].PLANS[case.plan])
            train_step(module, optimizer, schedule, [one], recipe)
        ends.append(bits(module))
    assert ends[0] == ends[1]


def reload_optimizer(case, params, source, target):
    """Load at tp = 2 what the other framework saved at 4, and save it again."""
    _, module = build(case, blank(params), 2)
    optimizer, schedule = make_optimizer(module, Recipe(**RECIPE))
    checkpoint.load(source, list(params), module, optimizer, schedule)
    checkpoint.save(target, list(params), module, optimizer, schedule)
