"""The masks that a whole model draws: one of its own in each layer and step, the same elements at every tp degree.

On four devices, in a process apart.
"""

import json
import os
import subprocess
import sys
from unittest.mock import patch

import jax
import numpy as np
import pytest

from jax_tp import block, dropout
from jax_tp.layers import LAYERS
from jax_tp.layouts import child
from jax_tp.mesh import make_mesh
from jax_tp.models import common
from jax_tp.tasks import place_batch
from jax_tp.worker import AXIS_TYPES
from parity.cases import FAMILIES, Selection, cases_of
from parity.cases.block import GPT
from parity.reference.dropout import kept as formula

STEP = 77
MODELS = ["models.gpt/sequence_parallel", "models.bert/megatron", "models.vit/field_sequence_parallel"]
NUMBERS = [6, 0, 1, 2, 3, 4, 5]  # of what enters two blocks of three


def case_of(model, tp, style):
    """The model's case with dropout, and its arrays: masks depend on no value."""
    family = next(family for family in FAMILIES if f"{family.layer}/{family.plan}" == model)
    cases = cases_of(family, Selection(({"tp": tp},), ("float64",)))
    case = next(case for case in cases if case.variant.endswith("_dropout") and case.style == style)
    params, batch = family.shapes(case)
    arrays = {f"params.{name}": np.zeros(shape) for name, shape in params.items()}
    arrays |= {name: np.zeros(shape, int if name in family.ids else float) for name, shape in batch.items()}
    return case, {**arrays, "target": np.zeros(())}


def masks_of(model, tp, steps=(STEP,)):
    """For each step the masks in the order of the layers, in the style where XLA draws every device's part of them."""
    case, arrays = case_of(model, tp, "typed")
    original, drawn = dropout.kept, []

    def record(*args):
        drawn.append(original(*args))
        return drawn[-1]

    mesh, layer = make_mesh({"tp": tp}, AXIS_TYPES["typed"], jax.devices()[:tp]), LAYERS[case.layer]
    with jax.set_mesh(mesh), patch.object(dropout, "kept", record):
        plan = layer.PLANS[case.plan]
        module = layer.build(mesh, "typed", plan, child(arrays, "params"), **case.options)
        inputs, _ = place_batch(arrays, mesh, plan)

        @jax.jit
        def masks(step):
            drawn.clear()
            module(*{**inputs, "step": step}.values())
            return tuple(drawn)

        return [[np.asarray(mask) for mask in masks(np.array(step))] for step in steps]


def alike(masks):
    """Pairs of layers with the same mask."""
    pairs = [(i, j) for j in range(len(masks)) for i in range(j)]
    return [(i, j) for i, j in pairs if np.array_equal(masks[i], masks[j])]


def are_of_formula(model, tp):
    """Whether each layer's mask is the formula's."""
    case, _ = case_of(model, tp, "typed")
    rate, seed = case.options["drop_rate"], case.options["seed"]
    pairs = zip(masks_of(model, tp)[0], NUMBERS, strict=True)
    return [np.array_equal(mask, formula(mask.shape, rate, seed, number, STEP)) for mask, number in pairs]


def look():
    """All that needs four devices."""
    masks, later = masks_of(MODELS[0], 2, (STEP, STEP + 1))
    original = block.build
    with patch.object(block, "build", lambda *args, **options: original(*args, **{**options, "number": 0})):
        (fault,) = masks_of(MODELS[0], 1)
    return {
        "alike": alike(masks),
        "same_later": sum(np.array_equal(one, other) for one, other in zip(masks, later, strict=True)),
        "alike_by_one_number": alike(fault),
        **{f"{model} {tp}": are_of_formula(model, tp) for model, tp in CASES},
    }


CASES = [*((MODELS[0], tp) for tp in (1, 2, 3, 4)), *((model, 3) for model in MODELS[1:])]


@pytest.fixture(scope="module")
def found():
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("model", "tp"), CASES)
def test_masks_of_a_model_at_every_tp_are_those_of_the_formula(model, tp, found):
    assert found[f"{model} {tp}"] == [True] * len(NUMBERS)


def test_no_two_layers_and_no_two_steps_have_the_same_mask(found):
    assert found["alike"] == []
    assert found["same_later"] == 0


def test_blocks_of_one_number_are_seen_to_have_the_same_masks(found):
    assert found["alike_by_one_number"] == [[1, 4], [2, 5], [3, 6]]


def test_dropout_is_refused_on_a_grid_and_in_a_loop_and_so_is_a_step_that_is_no_word():
    grid, options = LAYERS["grid.block"], {"num_heads": 1, "num_kv_heads": 1, **GPT, "drop_rate": 0.1}
    with pytest.raises(ValueError, match=r"^drop_rate=0\.1: a block on a grid has no dropout; 0 would work$"):
        grid.build(None, "manual", grid.PLANS["summa"], {}, **options)
    with pytest.raises(ValueError, match=r"^drop_rate: blocks in one loop would all draw the same masks; 0 would work"):
        common.build_blocks(block, None, "manual", None, {"all.norm1.scale": np.zeros((2, 3))}, options)
    inputs = {"x": np.zeros((1, 2), int), "labels": np.zeros((1, 2), int), "step": np.array(-1)}
    with pytest.raises(ValueError, match=r"^step=-1: expected a number of 32 bits, 0 to 4294967295$"):
        LAYERS["models.gpt"].check_inputs(inputs, num_ids=5)
    fields = {"x": np.zeros((1, 1, 2, 2)), "truth": np.zeros((1, 1, 2, 2)), "step": np.array(2**32)}
    with pytest.raises(ValueError, match=r"^step=4294967296: expected"):
        LAYERS["models.vit"].check_inputs(fields, patch=2)


if __name__ == "__main__":
    print(json.dumps(look()))
