"""A traced step against its plan's formula: every rewrite has a name, and whatever has none is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parity.presets import load_preset
from parity.reconcile import reconcile, step_formula
from parity.rewrites import explain
from parity.step_contract import StepRequest, StepTrace, TracedCollective

PRESET = load_preset("llama3-8b")
REQUEST = StepRequest(
    "r",
    PRESET.layer,
    "megatron",
    "manual",
    {"fsdp": 64, "tp": 4},
    {**PRESET.dims, "B": 64, "S": 4096},
    dict(PRESET.options),
)


def trace(framework="torch", request=REQUEST, change=lambda entries: entries):
    """One that sends exactly the formula, but for a change."""
    entries = [
        TracedCollective(entry.kind, entry.axis, entry.dtype, entry.payload_bytes, entry.count, entry.pass_)
        for entry in step_formula(request, framework == "jax")
    ]
    return StepTrace(framework, request.id, tuple(change(entries)))


def test_formula_of_llama3_8b_by_hand():
    B, S, D, L = 1, 4096, 4096, 32
    sent = {}
    for entry in step_formula(REQUEST):
        key = entry.pass_, entry.kind, entry.axis
        sent[key] = sent.get(key, 0) + entry.payload_bytes
    whole = L * (2 * D * 4096 + 2 * D * 1024 + 3 * D * 14336) + 2 * 128256 * D  # cut over tp
    norms = (2 * L + 1) * D
    parameters = 2 * (whole // 4 + norms)
    assert sent["forward", "all_reduce", "tp"] == (1 + 2 * L) * B * S * D * 2 + 3 * B * S * 4
    assert sent["backward", "all_reduce", "tp"] == (1 + 2 * L) * B * S * D * 2
    assert sent["forward", "all_gather", "fsdp"] == sent["backward", "all_gather", "fsdp"] == parameters
    assert sent["backward", "reduce_scatter", "fsdp"] == parameters
    assert sent["optimizer", "all_reduce", "fsdp+tp"] == 2 * (7 * L + 2)


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("plan", ["megatron", "sequence_parallel"])
def test_formula_itself_leaves_nothing(framework, plan):
    request = replace(REQUEST, plan=plan)
    found = reconcile(request, trace(framework, request))
    assert (found.unexplained_bytes, found.rewrites, found.unexplained) == (0, (), ())


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_one_byte_more_or_a_call_less_is_unexplained(framework):
    def fatter(entries):
        return [replace(entries[0], payload_bytes=entries[0].payload_bytes + 1), *entries[1:]]

    assert reconcile(REQUEST, trace(framework, change=fatter)).unexplained_bytes == 1
    lost = reconcile(REQUEST, trace(framework, change=lambda entries: entries[1:]))
    assert lost.unexplained_bytes == trace(framework).collectives[0].payload_bytes
    assert [row.pass_ for row in lost.unexplained] == ["forward"]


def moved_to_optimizer(entries):
    first, *rest = entries
    return [replace(first, pass_="optimizer"), *rest]


def split_up(entries):
    first, *rest = entries
    return [replace(first, kind="reduce_scatter"), replace(first, kind="all_gather"), *rest]


def widened(entries):
    first, *rest = entries
    return [replace(first, dtype="float32", payload_bytes=2 * first.payload_bytes), *rest]


CHANGES = {
    "combined with or hoisted into another pass": moved_to_optimizer,
    "all-reduce = reduce-scatter + all-gather": split_up,
    "reduced in float32, rounded afterwards": widened,
}


@pytest.mark.parametrize("name", CHANGES)
def test_compilers_rewrite_has_its_name_and_dispatch_may_have_none(name):
    compiled = reconcile(REQUEST, trace("jax", change=CHANGES[name]))
    assert compiled.unexplained_bytes == 0
    assert [one.name for one in compiled.rewrites] == [name]
    assert f"{name}: " in compiled.summary()
    assert reconcile(REQUEST, trace("torch", change=CHANGES[name])).unexplained_bytes > 0


def key(kind, pass_="backward", dtype="bfloat16"):
    return pass_, "fsdp", dtype, kind


def test_part_that_no_rewrite_explains_is_left():
    found, left = explain({key("reduce_scatter"): 100}, {key("all_reduce"): 130})
    assert [(one.name, one.payload_bytes) for one in found] == [("reduce-scatter = all-reduce + slice", 100)]
    assert left == {key("all_reduce"): 30}
    assert explain({key("reduce_scatter"): 100}, {key("all_reduce"): 100}, only_equivalents=True)[0] == []
    found, left = explain({key("reduce_scatter"): 100}, {key("all_reduce", dtype="float32"): 200})
    assert found[0].name == "reduce-scatter = all-reduce + slice, reduced in float32, rounded afterwards"
    assert left == {}


def test_gather_is_not_explained_by_a_wider_one():
    found, left = explain({key("all_gather"): 100}, {key("all_gather", dtype="float32"): 200})
    assert found == []
    assert left == {key("all_gather"): -100, key("all_gather", dtype="float32"): 200}
