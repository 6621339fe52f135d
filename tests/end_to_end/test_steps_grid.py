"""A whole step on a grid traced for devices that are not there, and what real workers send on as many that are."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from real_runs import GOOD, run_cases

from parity.cases import FAMILIES
from parity.cases.family import Selection, cases_of
from parity.presets import load_preset
from parity.reconcile import reconcile
from parity.step_contract import StepRequest
from parity.steps import trace_steps

PRESET = load_preset("gpt-tiny")
DIMS = {**PRESET.dims, "B": 8, "S": 16}
SQUARE, BESIDE, LARGE = {"x": 2, "y": 2}, {"dp": 2, "x": 2, "y": 2}, {"x": 4, "y": 4}


def request(id_, plan="summa", mesh=SQUARE, preset=PRESET, dims=DIMS, **changes):
    options = dict(preset.options)
    return StepRequest(id_, f"grid.{preset.layer}", plan, "manual", mesh, dims, options, **changes)


DIGITS = load_preset("vit-digits")
VIT = {"preset": DIGITS, "dims": {**DIGITS.dims, "B": 8, "S": 16}}
REQUESTS = {
    one.id: one
    for one in (
        request("summa"),
        request("large", mesh=LARGE),
        request("again", recompute=True),
        request("vit", "classes_stationary", BESIDE, **VIT),
    )
}


@pytest.fixture(scope="module")
def traces():
    answers = trace_steps([*REQUESTS.values()], GOOD)
    return {framework: dict(zip(REQUESTS, traced, strict=True)) for framework, traced in answers.items()}


@pytest.mark.parametrize("framework", GOOD)
@pytest.mark.parametrize("name", REQUESTS)
def test_formula_of_the_algorithm_explains_every_byte(framework, name, traces):
    trace = traces[framework][name]
    assert trace.skipped == ""
    found = reconcile(REQUESTS[name], trace)
    assert found.unexplained_bytes == 0, found.unexplained
    # Controls: another algorithm's formula, and a call less, leave bytes unexplained.
    other = {"summa": "stationary", "classes_stationary": "classes_summa"}[REQUESTS[name].plan]
    assert reconcile(replace(REQUESTS[name], plan=other), trace).unexplained_bytes > 0
    assert reconcile(REQUESTS[name], replace(trace, collectives=trace.collectives[1:])).unexplained_bytes > 0


def flops(trace):
    done = dict.fromkeys(("forward", "backward", "optimizer"), 0)
    for one in trace.operations:
        done[one.pass_] += one.flops * one.count
    return done


@pytest.mark.parametrize("name", ["summa", "large"])
def test_both_multiply_what_the_model_has(name, traces):
    B, S, L, D, H, E, F, V = (DIMS[letter] for letter in "BSLDHEFV")
    weights = L * (4 * D * H * E + 2 * D * F) + D * V  # the head; the embedding is looked up
    attention = L * 2 * S * H * E  # scores and their sum of values, for each token
    forward = 2 * B * S * (weights + attention) // REQUESTS[name].num_devices
    for framework, answers in traces.items():
        assert flops(answers[name]) == {"forward": forward, "backward": 2 * forward, "optimizer": 0}, framework


def test_recomputed_blocks_keep_their_inputs_and_multiply_again(traces):
    B, S, L, D, V, F = (DIMS[letter] for letter in "BSLDVF")
    head, down = (2 * B * S * D * size // 4 for size in (V, L * F))
    for framework, answers in traces.items():
        plain, again = answers["summa"], answers["again"]
        more = flops(again)["backward"] - flops(plain)["backward"]
        # XLA leaves the last product of a block out; PyTorch's makes its result before it tells what it keeps.
        assert more == flops(plain)["forward"] - head - (down if framework == "jax" else 0), framework
        inputs = L * B * S * D * 2 // 4
        assert 0 < again.memory.activations <= 2 * inputs < plain.memory.activations
        assert reconcile(replace(REQUESTS["again"], recompute=False), again).unexplained_bytes > 0


@pytest.mark.parametrize("framework", GOOD)
def test_a_device_holds_its_block_of_every_parameter(framework, traces):
    x, y = LARGE.values()
    shards = 0
    for name, shape in PRESET.shapes().items():
        split = 1 if len(shape) == 1 or name == "positions.table" else x  # rows, of weights and of the table of ids
        shards += math.prod(shape) // split // y * 2
    memory = traces[framework]["large"].memory
    assert memory.parameters == memory.gradients == shards
    assert 2 * shards <= memory.optimizer <= 2 * shards + 4 * len(PRESET.shapes()) + 8


# ------------------------------------------------------------------------------- the same on devices that are there


def sent(collectives):
    """Bytes by pass, kind, axis and dtype of what a worker or a trace says."""
    found = Counter()
    for entry in collectives:
        key = entry["pass"], entry["kind"], entry["axis"], entry["dtype"]
        found[key] += entry["count"] * entry["payload_bytes"]
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    family = next(one for one in FAMILIES if (one.layer, one.plan) == ("grid.models.gpt", "summa"))
    (case,) = cases_of(family, Selection((SQUARE,), ("train-float64",)))
    case = replace(case, recipe={**case.recipe, "num_steps": 2, "warmup_steps": 1})
    return case, run_cases(tmp_path_factory.mktemp("grid"), [case]).case(case.id)


def test_a_traced_step_sends_what_real_workers_send(trained):
    case, done = trained
    order = StepRequest("real", case.layer, case.plan, case.style, dict(case.mesh), {**case.dims, "L": 2},
                        dict(case.options), dtype=case.dtype)  # fmt: skip
    assert done["verdict"] == "pass", done
    traced = trace_steps([order], GOOD)
    for framework, (trace,) in traced.items():
        found = sent(done["collectives"][framework])
        if (
            framework == "jax"
        ):  # traced, all blocks are one loop: one norm for 6 weights and 10 vectors, not one a block
            for axis, number in (("x+y", 6), ("y", 10)):
                found["optimizer", "all_reduce", axis, "float64"] -= (order.dims["L"] - 1) * number * 8
        assert found == sent([one.to_json() for one in trace.collectives]), framework
        assert found.total() > 0
