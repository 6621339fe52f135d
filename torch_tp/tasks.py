"""The tasks of a case: one step with all its gradients, or several training steps; each returns named tensors."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from parity.contract import Case
from torch_tp.layers import LAYERS
from torch_tp.layouts import Plan, canonical, child, native_name, place
from torch_tp.optimizer import Recipe, make_optimizer, moments
from torch_tp.timing import time_once, time_step
from torch_tp.trace import Call, RecordCollectives
from torch_tp.train import Batch, Step, loss_and_gradients, train_step

REPEATS = 5


class Outcome(NamedTuple):
    """The results of a task: tensors by canonical name, times, and the collectives of one step."""

    tensors: dict[str, DTensor]
    cold_s: float
    steady_s: float
    repeats: int
    calls: list[Call]


def place_batch(arrays: Mapping[str, np.ndarray], mesh: DeviceMesh, plan: Plan) -> Batch:
    """The plan's inputs that the batch has, by name, and the target, laid out as the plan says."""
    placements = {"x": plan.x, **plan.inputs}
    inputs = {name: place(arrays[name], mesh, layout) for name, layout in placements.items() if name in arrays}
    return inputs, place(arrays["target"], mesh, plan.y)


def one_step(case: Case, mesh: DeviceMesh, arrays: Mapping[str, np.ndarray], device: str) -> Outcome:
    """The task "step": output, loss and all gradients of one step, without an update."""
    layer = LAYERS[case.layer]
    if hasattr(layer, "check_inputs"):
        layer.check_inputs(arrays, **case.options)
    plan, state = layer.PLANS[case.plan], child(arrays, "params")
    module = layer.build(mesh, case.style, plan, state, **case.options)
    batch, target = place_batch(arrays, mesh, plan)

    def step() -> Step:
        return loss_and_gradients(module, batch, target, plan.constants)

    done, cold_s, steady_s = time_step(step, device, REPEATS)
    with RecordCollectives(mesh) as record:
        step()

    tensors = {"loss": done.loss, "y": done.y, **batch}
    tensors |= {f"{name}.grad": grad for name, grad in done.input_grads.items()}
    params = dict(module.named_parameters())
    for name in state:
        native = native_name(name)
        tensors[name] = canonical(name, params[native])
        tensors[f"{name}.grad"] = canonical(name, done.param_grads[native])
    return Outcome(tensors, cold_s, steady_s, REPEATS, record.calls)


def training(case: Case, mesh: DeviceMesh, arrays: Mapping[str, np.ndarray], device: str) -> Outcome:
    """The task "train": loss and norm of every step, parameters and moments of some, the collectives of the last."""
    layer, recipe = LAYERS[case.layer], Recipe(**case.recipe)
    plan, state = layer.PLANS[case.plan], child(arrays, "params")
    module = layer.build(mesh, case.style, plan, state, **case.options)
    optimizer, schedule = make_optimizer(module, recipe)
    tensors: dict[str, DTensor] = {}
    seconds: list[float] = []
    for number in range(1, recipe.num_steps + 1):
        first = (number - 1) * recipe.num_microbatches
        parts = [child(arrays, f"batch{first + i}") for i in range(recipe.num_microbatches)]
        microbatches = [place_batch(part, mesh, plan) for part in parts]
        record = RecordCollectives(mesh)
        step = partial(train_step, module, optimizer, schedule, microbatches, recipe)
        with record if number == recipe.num_steps else nullcontext():
            update, time_s = time_once(step, device)
        seconds.append(time_s)
        tensors |= {f"step{number}.loss": update.loss, f"step{number}.norm": update.norm}
        if number % recipe.record_every:
            continue
        params = dict(module.named_parameters())
        for suffix, values in zip(("", ".m", ".v"), (params, *moments(optimizer, module)), strict=True):
            for name in state:
                if native_name(name) in values:
                    value = values[native_name(name)].detach().clone()  # the next step updates it in place
                    tensors[f"step{number}.{name}{suffix}"] = canonical(name, value)
    return Outcome(tensors, seconds[0], statistics.median(seconds[1:]), len(seconds) - 1, record.calls)


TASKS = {"step": one_step, "train": training}
