"""Blocks in a loop are blocks in a row: the same numbers, the same collectives. On four devices, in a process apart."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from jax_tp import hybrid
from jax_tp.layouts import child
from jax_tp.mesh import make_mesh
from jax_tp.models import llama
from jax_tp.steps import stacked
from jax_tp.trace import declared_collectives
from parity.presets import load_preset

PRESET = load_preset("llama-tiny")
NUM_BLOCKS = PRESET.dims["L"]
MESHES = {"tp": {"tp": 4}, "fsdp": {"fsdp": 2, "tp": 2}}
AXIS_TYPES = {"typed": AxisType.Explicit, "manual": AxisType.Auto}


def states():
    """The same parameters block by block, and stacked."""
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=shape) * 0.1 for name, shape in PRESET.shapes().items()}
    stack = {name: rows.get(name) for name in stacked(PRESET.shapes())}
    for name in stack:
        if name.startswith("blocks.all."):
            stack[name] = np.stack([rows[name.replace("all", str(i), 1)] for i in range(NUM_BLOCKS)])
    return rows, stack


def step_of(axis, style, state):
    """Loss and gradients as a function of the parameters, and these."""
    mesh = make_mesh(MESHES[axis], AXIS_TYPES[style])
    if axis == "tp":
        module = llama.build(mesh, style, llama.PLANS["megatron"], state, **PRESET.options)
    else:
        layer = hybrid.over(llama, "megatron", is_mean=True)
        state = {f"inner.{name}": array for name, array in state.items()}
        module = layer.build(mesh, style, layer.PLANS[axis], state, **PRESET.options)
    graph, params = nnx.split(module)
    ids = np.random.default_rng(1).integers(0, PRESET.dims["N"], (2, 4, 6))

    def step(params):
        return jax.value_and_grad(lambda params: nnx.merge(graph, params)(*ids))(params)

    return mesh, jax.jit(step), params


def gradients(axis, style, state):
    """The loss, the gradients by path, and what the jaxpr declares, in the order of what it is."""
    mesh, step, params = step_of(axis, style, state)
    with jax.set_mesh(mesh):
        loss, grads = step(params)
        declared = declared_collectives(step.trace(params).jaxpr, mesh)
    flat = {".".join(map(str, path)): np.asarray(grad.get_value()) for path, grad in nnx.to_flat_state(grads)}
    return float(loss), flat, sorted((call.pass_, call.kind, call.axis, call.payload_bytes) for call in declared)


def differences(axis, style):
    """|row - loop| of the loss, the most of any gradient, relative to the gradient; and the collectives of each."""
    rows, stack = states()
    loss, grads, in_row = gradients(axis, style, rows)
    loop_loss, loop_grads, in_loop = gradients(axis, style, stack)
    worst = 0.0
    for name, grad in grads.items():
        if "blocks." in name:
            head, _, rest = name.partition("blocks.")
            number, _, rest = rest.partition(".")
            other = loop_grads[f"{head}blocks.0.block.{rest}"][int(number)]
        else:
            other = loop_grads[name]
        worst = max(worst, float(np.abs(grad - other).max() / np.abs(grad).max()))
    return abs(loss - loop_loss), worst, in_row, in_loop


CASES = [("tp", "typed"), ("fsdp", "manual")]


@pytest.fixture(scope="module")
def found():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    environment["JAX_ENABLE_X64"] = "1"
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("axis", "style"), CASES)
def test_loop_of_blocks_matches_blocks_in_a_row(axis, style, found):
    loss, worst, in_row, in_loop = found[f"{axis}/{style}"]
    assert loss < 1e-14
    assert worst < 1e-12  # float64: 2 blocks of sums over at most 192 features
    assert in_loop == in_row
    assert len(in_row) == 0 if style != "manual" else len(in_row) > 2 * NUM_BLOCKS


def test_state_of_one_block_for_all_is_not_the_same():
    rows, stack = states()
    assert all(
        np.array_equal(child(rows, "blocks.1")[name], array[1]) for name, array in child(stack, "blocks.all").items()
    )
    assert not np.array_equal(stack["blocks.all.mlp.up.w"][0], stack["blocks.all.mlp.up.w"][1])


if __name__ == "__main__":
    print(json.dumps({f"{axis}/{style}": differences(axis, style) for axis, style in CASES}))
