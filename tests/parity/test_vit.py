"""ViT: patches against a loop, weights against areas, gradients against differences, faults that the bounds see."""

from __future__ import annotations

import numpy as np
import pytest

from parity.cases import Selection, cases_of, vit
from parity.cases.family import CaseError, Family
from parity.contract import Case
from parity.inputs import make_inputs
from parity.reference import evaluate
from parity.reference.vit import latitude_error, latitude_weights, patches
from parity.tolerance import bounds, error_in_bounds

FAMILIES = {family.plan: family for family in vit.FAMILIES}
SMALL = {"D": 8, "E": 2, "F": 12}
Arrays = dict[str, np.ndarray]


def model(plan: str, dtype: str = "float64", **dims: int) -> tuple[Family, Case, Arrays, Arrays]:
    family = FAMILIES[plan]
    case = next(cases_of(family, Selection(meshes=({"tp": 4},), numerics=(dtype,), dims={**SMALL, **dims})))
    arrays = make_inputs(
        case.layer, case.options, *family.shapes(case), family.ranges(case), dtype, "normal", 0, ignored=family.ignored
    )
    return family, case, *arrays


def test_patches_match_slices_of_the_grid() -> None:
    field = np.random.default_rng(0).standard_normal((2, 3, 6, 8))
    cut = patches(field, 2)
    assert cut.shape == (2, 12, 12)
    for i in range(3):
        for j in range(4):
            tile = field[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            np.testing.assert_array_equal(cut[:, 4 * i + j], tile.reshape(2, 12))


def test_latitude_weights_match_the_areas_of_the_rows() -> None:
    # A row from latitude a to b has the area sin b - sin a, which is cos(centre) times the same number for all rows.
    for num_rows in (1, 5, 64):
        edges = np.deg2rad(np.linspace(90, -90, num_rows + 1))
        areas = -np.diff(np.sin(edges))
        np.testing.assert_allclose(latitude_weights(num_rows), areas / areas.mean(), rtol=1e-13)


def test_latitude_error_matches_a_loop_over_the_grid() -> None:
    rng = np.random.default_rng(1)
    field, truth = rng.standard_normal((2, 2, 3, 4, 6))
    cosines = [np.cos(np.pi * (0.5 - (i + 0.5) / 4)) for i in range(4)]
    total = sum(
        cosines[i] / np.mean(cosines) * (field[b, c, i, j] - truth[b, c, i, j]) ** 2
        for b, c, i, j in np.ndindex(*truth.shape)
    )
    np.testing.assert_allclose(latitude_error(patches(field, 2), truth, 2), total / truth.size, rtol=1e-14)


@pytest.mark.parametrize("plan", FAMILIES)
def test_every_gradient_is_the_slope_of_the_loss_along_it(plan: str) -> None:
    _, case, params, batch = model(plan)
    grads = evaluate(case.layer, case.options, params, batch)
    step, rng = 1e-5, np.random.default_rng(1)
    for key, value in {**params, "x": batch["x"]}.items():
        direction = rng.standard_normal(value.shape)
        moved = [value + sign * step * direction for sign in (1, -1)]
        up, down = (
            evaluate(
                case.layer,
                case.options,
                {**params, key: one} if key in params else params,
                {**batch, key: one} if key in batch else batch,
            )["loss"]
            for one in moved
        )
        np.testing.assert_allclose(
            np.sum(grads[f"{key}.grad"] * direction), (up - down) / (2 * step), rtol=1e-5, atol=1e-8, err_msg=key
        )


def test_the_truth_is_data_without_a_gradient_but_y_depends_on_it() -> None:
    _, case, params, batch = model("field")
    want = evaluate(case.layer, case.options, params, batch)
    assert "truth.grad" not in want
    assert evaluate(case.layer, case.options, params, {**batch, "truth": batch["truth"] + 1})["y"] != want["y"]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_bounds_see_faults_of_the_field(dtype: str) -> None:
    _, case, params, batch = model("field", dtype)
    want = evaluate(case.layer, case.options, params, batch)
    bound = bounds(case.layer, case.options, params, batch, dtype, 4, 0)
    faults = {
        "head of another device": ({**params, "head.w": np.roll(params["head.w"], 3, 1)}, batch),
        "positions of another patch": ({**params, "positions.table": np.roll(params["positions.table"], 1, 0)}, batch),
        "latitudes shifted by a row": (params, {**batch, "truth": np.roll(batch["truth"], 1, 2)}),
    }
    for fault, arrays in faults.items():
        got = evaluate(case.layer, case.options, *arrays)
        seen = {key for key in want if error_in_bounds(got[key], want[key], bound[key]) > 1}
        assert len(seen) > len(want) / 2, fault


@pytest.mark.parametrize(
    ("plan", "head", "loss"), [("field", "B*(I//P)*(J//P)*D", ["1"]), ("classes", "B*D", ["B"] * 3)]
)
def test_it_sends_two_all_reduces_a_block_each_way_and_those_of_head_and_loss(
    plan: str, head: str, loss: list[str]
) -> None:
    family, case, *_ = model(plan)
    sent = [(item.pass_, item.elements) for item in family.expected(case)]
    blocks = ["B*(I//P)*(J//P)*D"] * 4
    assert sorted(elements for pass_, elements in sent if pass_ == "forward") == sorted([*blocks, *loss])
    assert sorted(elements for pass_, elements in sent if pass_ == "backward") == sorted([*blocks, head])


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"I": 7}, "P=2 does not divide I=7; I=6 or 8 would work"),
        ({"J": 1}, "P=2 does not divide J=1; J=2 would work"),
        ({"P": 1}, r"tp=4 does not divide \(C\*P\*P\)=3 of head.w"),
    ],
)
def test_a_grid_or_head_that_does_not_fit_is_refused(dims: dict[str, int], message: str) -> None:
    with pytest.raises(CaseError, match=message):
        model("field", **dims)
