"""A whole training step compiled for GPUs that need not exist: what one of them sends, computes and holds.

The step is that of train.py: forward, backward, clipping, AdamW. The model is the one that the cases run, in the same
plan and style, compiled ahead of time for A100s; its blocks are run by one loop (`models.common.Loop`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_tp import hybrid
from jax_tp.footprint import held_bytes
from jax_tp.layers import LAYERS
from jax_tp.layouts import Plan, State
from jax_tp.mesh import DATA_AXES, make_mesh
from jax_tp.optimizer import Recipe, make_optimizer, place_optimizer
from jax_tp.tasks import place_batch
from jax_tp.trace import A100_OPTIONS, a100_devices
from jax_tp.train import Batch, Update, train_step, training_loss
from parity.step_contract import XLA_FLAGS, Memory, StepOrder, StepRequest, StepTrace

# What is sent, computed and held does not depend on these numbers.
RECIPE = Recipe(100, 1, 3e-4, 3e-5, 10, 0.9, 0.95, 1e-8, 0.1, 1.0)

NOTES = (
    "as XLA compiles it for A100s, with its fusions; nothing was tuned, which takes a GPU",
    "parameters, gradients and moments are held in the dtype of the step; there are no float32 master weights",
    "attention writes its scores [heads, S, S] to memory, in float32 for the softmax",
)
AXIS_TYPES = {"auto": AxisType.Auto, "typed": AxisType.Explicit, "manual": AxisType.Auto}


def trace_step(order: StepOrder) -> StepTrace:
    """Compile the step: what XLA says of its memory, and the program. Raises ValueError as the layers' `build` do."""
    begin_s = time.monotonic()
    request = order.request
    devices = a100_devices(request.num_devices, request.gpus_per_node)
    mesh = make_mesh(request.mesh, AXIS_TYPES[request.style], devices)
    layer, plan, prefix = layer_of(request, is_mean=order.batch["target"] == ())
    dtype = jnp.dtype(request.dtype)
    state = {prefix + name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in stacked(order.params).items()}
    module = layer.build(mesh, request.style, plan, state, **request.options)
    if request.recompute:
        checkpoint_blocks(module)
    batch = place_batch(empty_batch(order, dtype), mesh, plan)
    flags = A100_OPTIONS | XLA_FLAGS[request.xla_flags].flags
    compiled, memory = run(module, mesh, batch, request.optimizer, flags)
    seconds, notes = time.monotonic() - begin_s, (*NOTES, flags_note(request.xla_flags, flags))
    return StepTrace("jax", request.id, memory=memory, seconds=seconds, notes=notes, hlo=compiled.as_text())


def flags_note(name: str, flags: Mapping[str, bool | int]) -> str:
    """The XLA flags in use and what they mean for overlap, in one line."""
    told = " ".join(f"--{flag}={str(value).lower()}" for flag, value in flags.items())
    return f"XLA flags, {name}: {XLA_FLAGS[name].meaning}; compiled with {told}"


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


def checkpoint_blocks(module: nnx.Module) -> None:
    """Save only the input of each block, and recompute its forward pass in the backward pass."""
    for block in getattr(module, "inner", module).blocks:
        block.keeps_inputs_only = True


def stacked(params: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes with all blocks in one: "blocks.0.x" .. "blocks.31.x" [D] as "blocks.all.x" [32, D]."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in params.items():
        if name.startswith("blocks."):
            name = f"blocks.all.{name.split('.', 2)[2]}"
            shape = (found.get(name, (0,))[0] + 1, *shape)
        found[name] = shape
    return found


def empty_batch(order: StepOrder, dtype: jnp.dtype) -> State:
    """The inputs and the target, without values."""
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.int64 if name in order.ids else dtype)
        for name, shape in order.batch.items()
    }


def run(
    module: nnx.Module, mesh: Mesh, batch: Batch, has_optimizer: bool, flags: Mapping[str, bool | int]
) -> tuple[Any, Memory]:
    """One step, compiled; what it updates is donated, so that new values reuse the memory of the old ones."""
    optimizer = None
    if has_optimizer:
        optimizer = nnx.eval_shape(partial(make_optimizer, recipe=RECIPE), module)
        place_optimizer(optimizer, module, mesh)
    graph, state = nnx.split((module, optimizer))
    order = tuple(batch[0])  # jit sorts the keys of dicts

    def step(state: nnx.State, inputs: dict[str, jax.Array], target: jax.Array) -> Any:
        module, optimizer = nnx.merge(graph, state)
        inputs = {name: inputs[name] for name in order}
        if optimizer is None:
            return nnx.value_and_grad(lambda module: training_loss(module(*inputs.values()), target))(module)
        update = train_step(module, optimizer, [(inputs, target)], RECIPE)
        return update, nnx.state((module, optimizer))

    whole = NamedSharding(mesh, P())
    loss, moved = (Update(whole, whole), state) if has_optimizer else (whole, nnx.state(module, nnx.Param))
    shardings = (loss, jax.tree.map(lambda array: array.sharding, moved))
    jitted = jax.jit(step, out_shardings=shardings, donate_argnums=0 if has_optimizer else ())
    with jax.set_mesh(mesh):
        compiled = jitted.lower(state, *batch).compile(compiler_options=dict(flags))
    return compiled, Memory(**held_bytes(compiled, module, optimizer), source="XLA memory analysis")
