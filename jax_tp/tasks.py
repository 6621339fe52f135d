"""The tasks of a case: one step with all its gradients, or several training steps; each returns named arrays."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_tp.layers import LAYERS
from jax_tp.layouts import Plan, State, child, named_parameters, native_name, place
from jax_tp.optimizer import Recipe, make_optimizer, moments, place_optimizer
from jax_tp.timing import time_once, time_step
from jax_tp.train import Batch, Step, Update, leaves_of, loss_and_gradients, train_step
from parity.contract import Case

REPEATS = 5
PROGRAM: dict[str, Any] = {}  # the last compiled step, by program: cases that differ only in the seed share it


class Outcome(NamedTuple):
    """The results of a task: arrays by canonical name, and times."""

    tensors: dict[str, jax.Array]
    cold_s: float
    steady_s: float
    repeats: int


def place_batch(arrays: State, mesh: Mesh, plan: Plan) -> Batch:
    """The plan's inputs that the batch has, by name, and the target, laid out as the plan says."""
    specs = {"x": plan.x, **plan.inputs}
    inputs = {name: place(arrays[name], mesh, spec) for name, spec in specs.items() if name in arrays}
    return inputs, place(arrays["target"], mesh, plan.y)


def call_program(case: Case, jitted: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Call the compiled program; compile it first unless it is the one compiled last."""
    if case.program not in PROGRAM:
        PROGRAM.clear()
        PROGRAM[case.program] = jitted.lower(*arguments).compile()
    return PROGRAM[case.program](*arguments)


def make_step(case: Case, mesh: Mesh, arrays: State) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The step of a case as a jitted function, and its arguments: (params, batch, target)."""
    layer = LAYERS[case.layer]
    plan = layer.PLANS[case.plan]
    module = layer.build(mesh, case.style, plan, child(arrays, "params"), **case.options)
    graph, params = nnx.split(module)
    batch, target = place_batch(arrays, mesh, plan)

    order = tuple(batch)  # jit sorts the keys of dicts

    def step(params: nnx.State, batch: dict[str, jax.Array], target: jax.Array) -> Step:
        inputs = {name: batch[name] for name in order}
        return loss_and_gradients(nnx.merge(graph, params), inputs, target, plan.constants)

    # Gradients get the layout of their parameters and inputs, or the compiler would choose one. The layout of y is up
    # to the layer: None leaves it unspecified here, so that it can be judged.
    leaves = leaves_of(batch, plan.constants)
    leaf_shardings, param_shardings = jax.tree.map(lambda array: array.sharding, (leaves, params))
    shardings = Step(NamedSharding(mesh, P()), None, leaf_shardings, param_shardings)
    return jax.jit(step, out_shardings=shardings), (params, batch, target)


def one_step(case: Case, mesh: Mesh, arrays: State) -> Outcome:
    """The task "step": output, loss and all gradients of one step, which moves nothing."""
    layer = LAYERS[case.layer]
    if hasattr(layer, "check_inputs"):
        layer.check_inputs(arrays, **case.options)
    jitted, arguments = make_step(case, mesh, arrays)
    done, cold_s, steady_s = time_step(partial(call_program, case, jitted, arguments), REPEATS)
    params, batch, _ = arguments
    tensors = {"loss": done.loss, "y": done.y, **batch}
    tensors |= {f"{name}.grad": grad for name, grad in done.input_grads.items()}
    params, grads = named_parameters(params), named_parameters(done.param_grads)
    for name in child(arrays, "params"):
        native = native_name(name)
        tensors[name] = params[native].get_value()
        tensors[f"{name}.grad"] = grads[native].get_value()
    return Outcome(tensors, cold_s, steady_s, REPEATS)


def is_shapes(arrays: State) -> bool:
    """Whether these are only shapes, without values."""
    return any(isinstance(array, jax.ShapeDtypeStruct) for array in arrays.values())


def make_train_step(case: Case, mesh: Mesh, arrays: State) -> tuple[Callable[..., Any], tuple[Any, ...], nnx.GraphDef]:
    """One training step as a jitted function, its arguments (state, microbatches), and the graph definition.

    State and definition are those of (module, optimizer).
    """
    layer, recipe = LAYERS[case.layer], Recipe(**case.recipe)
    plan = layer.PLANS[case.plan]
    module = layer.build(mesh, case.style, plan, child(arrays, "params"), **case.options)
    new = partial(make_optimizer, recipe=recipe)
    optimizer = nnx.eval_shape(new, module) if is_shapes(arrays) else new(module)
    place_optimizer(optimizer, module, mesh)
    graph, state = nnx.split((module, optimizer))
    microbatches = [place_batch(child(arrays, f"batch{i}"), mesh, plan) for i in range(recipe.num_microbatches)]

    order = tuple(microbatches[0][0])  # jit sorts the keys of dicts

    def step(state: nnx.State, microbatches: list[Batch]) -> tuple[Update, nnx.State]:
        module, optimizer = nnx.merge(graph, state)
        ordered = [({name: inputs[name] for name in order}, target) for inputs, target in microbatches]
        update = train_step(module, optimizer, ordered, recipe)
        return update, nnx.state((module, optimizer))

    whole = NamedSharding(mesh, P())
    shardings = (Update(whole, whole), jax.tree.map(lambda array: array.sharding, state))
    return jax.jit(step, out_shardings=shardings), (state, microbatches), graph


def training(case: Case, mesh: Mesh, arrays: State) -> Outcome:
    """The task "train": loss and norm of every step, parameters and moments of some."""
    recipe, plan = Recipe(**case.recipe), LAYERS[case.layer].PLANS[case.plan]
    jitted, (state, _), graph = make_train_step(case, mesh, arrays)
    tensors: dict[str, jax.Array] = {}
    seconds: list[float] = []
    for number in range(1, recipe.num_steps + 1):
        first = (number - 1) * recipe.num_microbatches
        parts = [child(arrays, f"batch{first + i}") for i in range(recipe.num_microbatches)]
        step = partial(call_program, case, jitted, (state, [place_batch(part, mesh, plan) for part in parts]))
        (update, state), time_s = time_once(step)
        seconds.append(time_s)
        tensors |= {f"step{number}.loss": update.loss, f"step{number}.norm": update.norm}
        if number % recipe.record_every:
            continue
        module, optimizer = nnx.merge(graph, state)
        params = named_parameters(nnx.state(module, nnx.Param))
        for suffix, values in zip(("", ".m", ".v"), (params, *moments(optimizer)), strict=True):
            for name in child(arrays, "params"):
                tensors[f"step{number}.{name}{suffix}"] = values[native_name(name)].get_value()
    return Outcome(tensors, seconds[0], statistics.median(seconds[1:]), len(seconds) - 1)


TASKS = {"step": one_step, "train": training}
MAKERS = {"step": make_step, "train": make_train_step}
