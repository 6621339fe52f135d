"""The training oracle against its rule written out, and the mistakes that its bounds must tell apart."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest

from parity.cases import FAMILIES, family_of
from parity.cases.family import Selection, cases_of
from parity.cases.training import RECIPE, training_collectives
from parity.check import layout_of
from parity.inputs import make_inputs
from parity.reference import evaluate, train
from parity.tolerance import bounds_of, error_in_bounds

(MLP,) = (family for family in FAMILIES if family.layer == "mlp" and family.plan == "megatron")
DIMS = {"B": 2, "S": 3, "D": 4, "F": 8}
PARAMS = ("up.w", "up.b", "down.w", "down.b")


def case_of(dtype):
    wanted = Selection(meshes=({"tp": 4},), numerics=(f"train-{dtype}",), variants=("gelu_erf",), dims={**DIMS, "F": 8})
    return next(cases_of(MLP, wanted))


def inputs_of(case, seed=0):
    params, batch = MLP.shapes(case)
    num_batches = case.recipe["num_steps"] * case.recipe["num_microbatches"]
    return make_inputs(
        case.layer, case.options, params, batch, {}, case.dtype, case.operands, seed, num_batches=num_batches
    )


def recipe_with(max_norm, **changes):
    return {**RECIPE, "max_norm": max_norm, **changes}


def textbook(params, batch, recipe, options):
    """The rule of the optimizers' docstrings, in Optax's order of operations; a mistake is a changed number."""
    p = {name: value.astype(np.float64) for name, value in params.items()}
    m, v = ({name: np.zeros_like(value) for name, value in p.items()} for _ in range(2))
    num_parts, found = recipe["num_microbatches"], {}
    for t in range(1, recipe["num_steps"] + 1):
        parts = []
        for i in range((t - 1) * num_parts, t * num_parts):
            one = {name.split(".", 1)[1]: array for name, array in batch.items() if name.startswith(f"batch{i}.")}
            parts.append(evaluate("mlp", options, p, one))
        mean = {key: sum(part[key] for part in parts) / num_parts for key in parts[0]}
        norm = math.sqrt(sum(value**2 for name in p for value in mean[f"{name}.grad"].ravel()))
        found |= {f"step{t}.loss": mean["loss"], f"step{t}.norm": np.array(norm)}
        done, last = t - recipe["warmup_steps"], recipe["num_steps"] - recipe["warmup_steps"]
        half = (recipe["peak_rate"] - recipe["end_rate"]) / 2
        lr = recipe["end_rate"] + half * (1 + math.cos(math.pi * done / last))
        lr = recipe["peak_rate"] * t / recipe["warmup_steps"] if done <= 0 else lr
        for name in p:
            g = mean[f"{name}.grad"] * min(1, recipe["max_norm"] / (norm + recipe.get("below", 1e-6)))
            m[name] += (1 - recipe["b1"]) * (g - m[name])
            v[name] += (1 - recipe["b2"]) * (g * g - v[name])
            under = recipe.get("eps_root", 0.0)
            root = np.sqrt(v[name] / (1 - recipe["b2"] ** t) + under) + recipe["eps"]
            p[name] = p[name] - lr * (m[name] / (1 - recipe["b1"] ** t) / root + recipe["weight_decay"] * p[name])
            found |= {
                f"step{t}.{name}": p[name],
                f"step{t}.{name}.m": m[name].copy(),
                f"step{t}.{name}.v": v[name].copy(),
            }
    return found


@pytest.fixture(scope="module", params=["float64", "float32"])
def judged(request):
    """The oracle's values and bounds of a small MLP, clipped in some steps and not in others."""
    case = case_of(request.param)
    params, batch = inputs_of(case)
    free = train("mlp", case.options, params, batch, recipe_with(math.inf))
    norms = sorted(float(free[f"step{t}.norm"]) for t in range(1, 11))
    recipe = recipe_with((norms[4] + norms[5]) / 2)
    evaluation = partial(train, "mlp", case.options, params, batch, recipe)
    want, bound = evaluation(), bounds_of(evaluation, case.dtype, 1, 0)
    clipped = [float(want[f"step{t}.norm"]) > recipe["max_norm"] for t in range(1, 11)]
    assert any(clipped)
    assert not all(clipped)
    return case, params, batch, recipe, want, bound


def worst(judged, **changes):
    """(error in bounds, tensor) where the rule with these changes is furthest from the oracle."""
    case, params, batch, recipe, want, bound = judged
    got = textbook(params, batch, {**recipe, **changes}, case.options)
    assert got.keys() == want.keys()
    return max((error_in_bounds(got[name], want[name], bound[name]), name) for name in want)


def test_training_matches_the_rule_written_out(judged):
    assert worst(judged)[0] < 1


MISTAKES = {
    "decay_of_torch": {"weight_decay": 1e-2},
    "decay_of_optax": {"weight_decay": 1e-4},
    "betas_of_torch": {"b2": 0.999},
    "one_step_of_warmup_less": {"warmup_steps": 2},
    "never_clipped": {"max_norm": math.inf},
    "norm_half_as_large": {"max_norm": 1.0},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_beyond_the_bounds(judged, mistake):
    assert worst(judged, **MISTAKES[mistake])[0] > 10


@pytest.mark.parametrize("judged", ["float64"], indirect=True)
@pytest.mark.parametrize("mistake", [{"eps": 1e-8}, {"eps_root": 1e-12}, {"below": 0.0}], ids=str)
def test_smallest_mistakes_are_beyond_the_bounds_of_float64(judged, mistake):
    assert worst(judged, **mistake)[0] > 10


def test_accumulated_gradient_is_that_of_all_microbatches_at_once():
    """Two microbatches of 2 are one batch of 4 with half the sum as its loss: the first moment of step 1 tells."""
    case = case_of("float64")
    params, batch = inputs_of(case)
    recipe = recipe_with(math.inf, num_steps=1)
    found = train("mlp", case.options, params, batch, recipe)
    both = {name: np.concatenate([batch[f"batch0.{name}"], batch[f"batch1.{name}"]]) for name in ("x", "target")}
    once = evaluate("mlp", case.options, params, both)
    for name in PARAMS:
        expected = 0.1 * once[f"{name}.grad"] / 2
        assert np.allclose(found[f"step1.{name}.m"], expected, rtol=1e-12, atol=0)
        assert not np.allclose(found[f"step1.{name}.m"], 2 * expected, rtol=1e-3, atol=0)


def test_batches_differ_and_are_those_of_their_seed():
    case = case_of("float64")
    _, first = inputs_of(case)
    _, again = inputs_of(case)
    _, other = inputs_of(case, seed=1)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["batch0.x"], other["batch0.x"])
    assert len({first[f"batch{i}.x"].tobytes() for i in range(20)}) == 20


def test_training_sends_each_layer_collective_once_a_microbatch_and_the_norm_once():
    formulas = [(entry.pass_, entry.axis, entry.elements) for entry in MLP.expected(case_of("float64"))]
    assert formulas == [("forward", "tp", "B*S*D")] * 2 + [("optimizer", "tp", "3")]


def test_what_only_the_inputs_gradient_reads_is_gathered_by_torch_alone():
    (family,) = (family for family in FAMILIES if (family.layer, family.plan) == ("hybrid.block", "fsdp"))
    selection = Selection(({"fsdp": 2, "tp": 2},), ("float64", "train-float64"), ("llama",))
    for case in cases_of(family, selection):
        gathers = [entry for entry in family.expected(case) if entry.param.endswith("norm1.scale")]
        backward = [entry.torch_only for entry in gathers if (entry.kind, entry.pass_) == ("all_gather", "backward")]
        assert backward == ([True, True] if case.task == "train" else [False])


def test_norm_of_replicated_parameters_sends_nothing():
    assert training_collectives([], ["D F", "F"], RECIPE, ["tp"]) == []
    both = training_collectives([], ["D F@tp+fsdp", "F@fsdp"], RECIPE, ["fsdp", "tp"])
    assert [(entry.axis, entry.elements) for entry in both] == [("fsdp+tp", "1"), ("fsdp", "1")]


def trained_cases():
    """One training of every variant that has any; plans whose inputs are the same train alike."""
    found = {}
    for family in FAMILIES:
        for variant in family.variants:
            mesh = dict.fromkeys(sorted(family.used_axes()), 2)
            for case in itertools.islice(cases_of(family, Selection((mesh,), ("train-float64",), (variant.name,))), 1):
                found.setdefault((case.inputs, case.recipe["max_norm"]), case)
    return found.values()


@pytest.mark.parametrize("case", list(trained_cases()), ids=lambda case: case.id)
def test_clipping_acts_in_some_steps_and_not_in_others(case):
    family = family_of(case)
    params, batch = family.shapes(case)
    drawn = make_inputs(
        case.layer, case.options, params, batch, family.ranges(case), case.dtype, "normal", 0, family.ignored, 20
    )
    found = train(case.layer, case.options, *drawn, case.recipe)
    clipped = sum(float(found[f"step{t}.norm"]) > case.recipe["max_norm"] for t in range(1, 11))
    assert 2 <= clipped <= 8


def test_layout_of_a_moment_is_that_of_its_parameter():
    assert layout_of(MLP, "step3.up.w.m") == layout_of(MLP, "step10.up.w") == "D F@tp"
    assert layout_of(MLP, "step3.norm") == layout_of(MLP, "step3.loss") == ""
