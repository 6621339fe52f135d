"""Whole models: gradients against differences of the loss, places that get no gradient, faults that the bounds see."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from parity.cases import FAMILIES, Selection, cases_of
from parity.cases.family import CaseError, Family
from parity.contract import Case
from parity.inputs import make_inputs
from parity.reference import evaluate, output
from parity.reference import models as reference
from parity.reference import vit as vit_reference
from parity.tolerance import bounds, error_in_bounds

MODELS = ["models.bert", "models.gpt", "models.llama"]
SMALL = {"D": 8, "H": 12, "K": 12, "E": 2, "F": 12}


def model(
    name: str, dtype: str = "float64", is_dropped: bool = False
) -> tuple[Case, dict[str, np.ndarray], dict[str, np.ndarray]]:
    family = next(family for family in FAMILIES if family.layer == name)
    selection = Selection(meshes=({"tp": 4},), numerics=(dtype,), dims=SMALL)
    case = next(case for case in cases_of(family, selection) if case.variant.endswith("_dropout") == is_dropped)
    params, batch = family.shapes(case)
    arrays = make_inputs(
        name, case.options, params, batch, family.ranges(case), dtype, "normal", 0, ignored=family.ignored
    )
    return case, *arrays


def family_of(name: str, plan: str = "megatron") -> Family:
    return next(family for family in FAMILIES if (family.layer, family.plan) == (name, plan))


def sent(family: Family) -> Counter[tuple[str, str, str]]:
    """How many collectives of each pass, kind and size the formulas of the family's first case are."""
    case = next(iter(cases_of(family, Selection(meshes=({"tp": 4},), numerics=("float64",)))))
    return Counter((item.pass_, item.kind, item.elements) for item in family.expected(case))


@pytest.mark.parametrize("name", MODELS)
def test_every_gradient_is_the_slope_of_the_loss_along_it(name: str) -> None:
    case, params, batch = model(name)
    grads = evaluate(name, case.options, params, batch)
    step, rng = 1e-5, np.random.default_rng(1)
    for key, value in params.items():
        direction = rng.standard_normal(value.shape)
        up, down = (
            evaluate(name, case.options, {**params, key: value + sign * step * direction}, batch)["loss"]
            for sign in (1, -1)
        )
        np.testing.assert_allclose(
            np.sum(grads[f"{key}.grad"] * direction), (up - down) / (2 * step), rtol=1e-5, atol=1e-8, err_msg=key
        )


def test_rows_that_nothing_reaches_have_the_gradient_zero_and_others_have_not() -> None:
    case, params, batch = model("models.gpt")
    grads = evaluate("models.gpt", case.options, params, batch)
    N, S = case.dims["N"], case.dims["S"]
    table, positions = grads["tied.embed.table.grad"], grads["positions.table.grad"]
    assert np.all(table[:N].any(axis=1)), "every id has a logit"
    assert not table[N:].any(), "padding"
    assert np.all(positions[:S].any(axis=1))
    assert not positions[S:].any(), "positions after the last token"
    batch["x"][0, 0] = N  # who looks padding up gives it a gradient
    assert evaluate("models.gpt", case.options, params, batch)["tied.embed.table.grad"][N].any()


@pytest.mark.parametrize("name", ["models.gpt", "models.llama"])
def test_a_token_changes_no_loss_before_it(name: str) -> None:
    case, params, batch = model(name)
    before = {**batch, "labels": np.where(np.arange(6) < 3, 1, -100) * np.ones((2, 1), int)}
    changed = {**before, "x": np.where(np.arange(6) < 3, batch["x"], (batch["x"] + 1) % case.dims["N"])}
    assert output(name, case.options, params, changed) == output(name, case.options, params, before)
    sees_all = {**case.options, "causal": False}
    assert output(name, sees_all, params, changed) != output(name, sees_all, params, before)


def faults(name: str, params: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Parameters with which the formula computes what a faulty model of the right ones would."""

    def with_(key: str, value: np.ndarray) -> dict[str, np.ndarray]:
        return {**params, key: value.astype(params[key].dtype)}

    swapped = {
        key: params[key.replace("blocks.0", "blocks.x").replace("blocks.1", "blocks.0").replace("blocks.x", "blocks.1")]
        for key in params
    }
    found = {"blocks in another order": swapped}
    if name != "models.llama":
        bias = "blocks.1.mlp.down.b"
        found["row-parallel bias added four times"] = with_(bias, 4 * params[bias])
        found["positions from 1"] = with_("positions.table", np.roll(params["positions.table"], -1, 0))
    else:
        found["last norm forgotten its scale"] = with_("norm.scale", np.ones_like(params["norm.scale"]))
        found["head of another device"] = with_("head.w", np.roll(params["head.w"], 9, 1))
    return found


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_the_bounds_see_faults_of_a_model(name: str, dtype: str) -> None:
    case, params, batch = model(name, dtype)
    want = evaluate(name, case.options, params, batch)
    bound = bounds(name, case.options, params, batch, dtype, 4, 0)
    for fault, changed in faults(name, params).items():
        got = evaluate(name, case.options, changed, batch)
        seen = {key for key in want if error_in_bounds(got[key], want[key], bound[key]) > 1}
        assert len(seen) > len(want) / 2, fault


@pytest.mark.parametrize("name", MODELS)
def test_a_model_sends_what_its_layers_send_and_no_more(name: str) -> None:
    family = family_of(name)
    num_blocks = len({key.split(".")[1] for key in family.tensors if key.startswith("blocks.")})
    assert sent(family) == {
        ("forward", "all_reduce", "B*S*D"): 1 + 2 * num_blocks,
        ("backward", "all_reduce", "B*S*D"): 1 + 2 * num_blocks,
        ("forward", "all_reduce", "B*S"): 3,
    }


# Under sequence parallelism: all-reduces of D of the last norms and in all blocks of L, and what else is for tokens.
SMALL_SUMS = {"models.gpt": (2, 6), "models.bert": (5, 6), "models.llama": (1, 2)}
OTHERS = {
    "models.gpt": {("backward", "all_gather", "S*D"): 1},
    "models.bert": {("backward", "all_gather", "S*D"): 1, ("backward", "all_reduce", "D*D"): 1},
    "models.llama": {},
}


@pytest.mark.parametrize("name", MODELS)
def test_under_sequence_parallelism_a_model_sends_what_its_docstring_says(name: str) -> None:
    family = family_of(name, "sequence_parallel")
    num_blocks = len({key.split(".")[1] for key in family.tensors if key.startswith("blocks.")})
    each = {(pass_, kind, "B*S*D") for pass_ in ("forward", "backward") for kind in ("all_gather", "reduce_scatter")}
    last, of_block = SMALL_SUMS[name]
    assert sent(family) == {
        **dict.fromkeys(each, 1 + 2 * num_blocks),
        ("forward", "all_reduce", "B*S"): 3,
        ("backward", "all_reduce", "D"): last + of_block * num_blocks,
        **OTHERS[name],
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_sequence_that_tp_does_not_divide_is_refused_with_what_would_work(name: str) -> None:
    wanted = Selection(meshes=({"tp": 4},), numerics=("float64",), dims={"S": 10})
    next(iter(cases_of(family_of(name), replace(wanted, dims={"S": 7}))))
    message = r"sequence_parallel: tp=4 does not divide S=10 of h \[B S@tp D\]; S=8 or 12 would work$"
    with pytest.raises(CaseError, match=message):
        next(iter(cases_of(family_of(name, "sequence_parallel"), wanted)))


# What goes wrong with masks: what the formula's functions do instead.
SHARED_MASKS = {
    "two blocks draw by the same numbers": (
        "block",
        lambda own: lambda p, b, options: own(p, b, {**options, "number": 0}),
    ),
    "what enters the blocks shares a mask": (
        "drop",
        lambda own: lambda x, rate, seed, _, step: own(x, rate, seed, 1, step),
    ),
    "no step has a mask of its own": (
        "run_blocks",
        lambda own: lambda p, h, b, options: own(p, h, {**b, "step": 0}, options),
    ),
}


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", ["models.bert", "models.gpt", "models.vit"])
def test_the_bounds_see_masks_that_layers_or_steps_share(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, params, batch = model(name, dtype, is_dropped=True)
    want = evaluate(name, case.options, params, batch)
    bound = bounds(name, case.options, params, batch, dtype, 4, 0)
    for fault, (function, make) in SHARED_MASKS.items():
        with monkeypatch.context() as patch:
            for module in (reference, vit_reference):
                if hasattr(module, function):
                    patch.setattr(module, function, make(getattr(module, function)))
            got = evaluate(name, case.options, params, batch)
        seen = {key for key in want if error_in_bounds(got[key], want[key], bound[key]) > 1}
        assert len(seen) > len(want) / 2, fault
