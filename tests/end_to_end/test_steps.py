"""A whole step traced for a mesh that is not there, by both workers side by side."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from parity.presets import load_preset
from parity.reconcile import reconcile
from parity.step_contract import StepRequest
from parity.steps import trace_steps

WORKERS = {name: (sys.executable, "-m", f"{name}_tp.worker") for name in ("torch", "jax")}
PRESET = load_preset("llama-tiny")
DIMS = {**PRESET.dims, "B": 4, "S": 16}
FSDP, TP = 2, 2


def request(id_="tiny", **changes):
    given = {"plan": "megatron", "style": "manual", "mesh": {"fsdp": FSDP, "tp": TP}, "dims": DIMS, **changes}
    return StepRequest(id_, PRESET.layer, options=dict(PRESET.options), **given)


def total(trace, **wanted):
    """Bytes of the collectives with these fields."""
    return sum(
        entry.count * entry.payload_bytes
        for entry in trace.collectives
        if all(getattr(entry, name) == value for name, value in wanted.items())
    )


SCHEDULED = request("scheduled", xla_flags="recommended")
RECOMPUTED = request("again", plan="sequence_parallel", recompute=True)


@pytest.fixture(scope="module")
def both():
    return trace_steps([request(), RECOMPUTED], WORKERS)


@pytest.fixture(scope="module")
def traces(both):
    return {name: plain for name, (plain, _) in both.items()}


@pytest.mark.parametrize("framework", WORKERS)
def test_step_sends_what_the_plan_says(framework, traces):
    trace = traces[framework]
    assert trace.skipped == ""
    activations = DIMS["B"] // FSDP * DIMS["S"] * DIMS["D"] * 2  # bfloat16 keeps its 2 bytes
    for pass_ in ("forward", "backward"):
        found = total(trace, pass_=pass_, axis="tp", kind="all_reduce", dtype="bfloat16")
        assert found == (1 + 2 * DIMS["L"]) * activations
    # Of a parameter: its tp shard, which the norms do not have.
    sizes = {name: math.prod(shape) * 2 for name, shape in PRESET.shapes().items()}
    shards = sum(size if "norm" in name else size // TP for name, size in sizes.items())
    assert total(trace, pass_="forward", axis="fsdp", kind="all_gather") == shards
    assert total(trace, pass_="backward", axis="fsdp", kind="reduce_scatter") == shards
    # XLA does not gather again the table of which rows were looked up.
    unread = sizes["embed.table"] // TP if framework == "jax" else 0
    assert total(trace, pass_="backward", axis="fsdp", kind="all_gather") == shards - unread


@pytest.mark.parametrize("framework", WORKERS)
def test_formula_of_the_plan_explains_every_byte(framework, traces):
    found = reconcile(request(), traces[framework])
    assert found.unexplained_bytes == 0, found.unexplained
    assert found.rewrites == () or framework == "jax"


def test_both_multiply_what_the_model_has(traces):
    B, S, L, D, H, K, E, F, V = (DIMS[letter] for letter in "BSLDHKEFV")
    weights = L * (D * H * E * 2 + D * K * E * 2 + 3 * D * F) + D * V  # the embedding is looked up
    attention = L * 2 * S * H * E  # scores and their sum of values, for each token
    forward = 2 * B * S * (weights + attention) // (FSDP * TP)
    for framework, trace in traces.items():
        done = dict.fromkeys(("forward", "backward", "optimizer"), 0)
        for one in trace.operations:
            done[one.pass_] += one.flops * one.count
        assert done == {"forward": forward, "backward": 2 * forward, "optimizer": 0}, framework
        moved = {one.pass_ for one in trace.operations if one.kind == "memory" and one.moved_bytes}
        assert moved == {"forward", "backward", "optimizer"}, framework


@pytest.mark.parametrize("framework", WORKERS)
def test_recomputed_blocks_run_and_send_again_what_backward_reads_and_keep_their_inputs(framework, both):
    plain, again = both[framework]
    assert reconcile(RECOMPUTED, again).unexplained_bytes == 0
    assert reconcile(replace(RECOMPUTED, recompute=False), again).unexplained_bytes > 0
    inputs = DIMS["L"] * DIMS["B"] // FSDP * DIMS["S"] // TP * DIMS["D"] * 2
    assert 0 < again.memory.activations <= 2 * inputs < plain.memory.activations
    forward, more = (
        sum(one.flops * one.count * sign for trace, sign in signs for one in trace.operations if one.pass_ == pass_)
        for pass_, signs in (("forward", [(plain, 1)]), ("backward", [(again, 1), (plain, -1)]))
    )
    head = 2 * DIMS["B"] * DIMS["S"] * DIMS["D"] * DIMS["V"] // (FSDP * TP)
    down = 2 * DIMS["B"] * DIMS["S"] * DIMS["D"] * DIMS["F"] // (FSDP * TP) * DIMS["L"]  # nobody reads its product
    assert more == forward - head - down


@pytest.mark.parametrize("framework", WORKERS)
def test_step_holds_its_shards(framework, traces):
    memory = traces[framework].memory
    sizes = {name: math.prod(shape) * 2 for name, shape in PRESET.shapes().items()}
    shards = sum(size // FSDP if "norm" in name else size // (FSDP * TP) for name, size in sizes.items())
    assert memory.parameters == memory.gradients == shards
    assert 2 * shards <= memory.optimizer <= 2 * shards + 4 * len(sizes) + 8  # two moments, and counts of steps
    assert memory.total > memory.parameters + memory.optimizer


def test_flags_of_xla_change_what_runs_beside_collectives_and_not_what_is_sent(traces):
    (scheduled,) = trace_steps([SCHEDULED], {"jax": WORKERS["jax"]})["jax"]
    assert reconcile(SCHEDULED, scheduled).unexplained_bytes == 0
    plain = traces["jax"]
    assert total(plain, axis="fsdp", kind="all_gather", is_async=True) == 0
    assert total(scheduled, axis="fsdp", kind="all_gather", is_async=True) > 0
    assert all(call.beside for call in scheduled.collectives if call.is_async)
    for name, trace in (("default", plain), ("recommended", scheduled)):
        (told,) = [note for note in trace.notes if note.startswith("XLA flags")]
        assert told.startswith(f"XLA flags, {name}: ")
        assert ("--xla_gpu_enable_latency_hiding_scheduler=true" in told) is (name == "recommended")


def test_source_lines_are_those_of_the_package(traces):
    for framework, trace in traces.items():
        lines = {entry.source_line.split(":")[0] for entry in trace.collectives}
        assert f"{framework}_tp/cross_entropy.py" in lines
        assert lines.isdisjoint({f"{framework}_tp/questions.py", f"{framework}_tp/worker.py"})
        assert all(line == "" or line.startswith(f"{framework}_tp/") for line in lines)


def test_without_the_plugin_torch_answers_and_jax_says_what_to_install():
    worker = (sys.executable, str(Path(__file__).parent / "without_plugin_worker.py"))
    ((torch,), (jax,)) = trace_steps([request()], {**WORKERS, "jax": worker}).values()
    assert torch.skipped == ""
    assert torch.collectives
    assert "pip install 'tp-parity[a100]'" in jax.skipped
    assert jax.collectives == ()


def test_what_a_layer_refuses_is_skipped_with_its_words():
    refused = request(dims={**DIMS, "K": 1, "H": 8}, mesh={"fsdp": 2, "tp": 2})
    refused = StepRequest(**{**refused.to_json(), "options": {**refused.options, "num_kv_heads": 1}})
    (trace,) = trace_steps([refused], {"torch": WORKERS["torch"]})["torch"]
    assert "tp=2 does not divide num_kv_heads=1" in trace.skipped
