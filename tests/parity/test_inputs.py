from __future__ import annotations

import numpy as np
import pytest
from textbook import make_inputs

from parity.contract import DTYPES
from parity.integer_check import NotExactError
from parity.reference import evaluate

DIMS = {"B": 3, "S": 5, "D": 24, "F": 48}
RELU = {"activation": "relu"}
FLOATS = ["float64", "float32", "bfloat16"]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("operands", ["normal", "integers"])
def test_inputs_have_the_shapes_and_dtype_of_the_case(dtype: str, operands: str) -> None:
    params, batch = make_inputs("mlp", DIMS, RELU, dtype, operands, 0)
    shapes = {name: array.shape for name, array in {**params, **batch}.items()}
    assert shapes == {
        "up.w": (24, 48),
        "up.b": (48,),
        "down.w": (48, 24),
        "down.b": (24,),
        "x": (3, 5, 24),
        "target": (3, 5, 24),
    }
    assert {array.dtype for array in {**params, **batch}.values()} == {DTYPES[dtype]}
    without_bias, _ = make_inputs("mlp", DIMS, {**RELU, "bias": False}, dtype, operands, 0)
    assert set(without_bias) == {"up.w", "down.w"}


@pytest.mark.parametrize("operands", ["normal", "integers"])
def test_inputs_are_a_function_of_the_seed(operands: str) -> None:
    first, again, other = (make_inputs("linear", DIMS, {}, "float32", operands, seed) for seed in (1, 1, 2))
    for part in (0, 1):
        for name in first[part]:
            assert np.array_equal(first[part][name], again[part][name])
            assert not np.array_equal(first[part][name], other[part][name])


def test_dtypes_get_the_same_numbers_rounded() -> None:
    wide, narrow = (make_inputs("linear", DIMS, {}, dtype, "normal", 3) for dtype in ("float64", "bfloat16"))
    for name in wide[0]:
        assert np.array_equal(wide[0][name].astype(DTYPES["bfloat16"]), narrow[0][name])


def test_normal_operands_have_unit_scale() -> None:
    dims = {"B": 4, "S": 64, "D": 128, "F": 256}
    params, batch = make_inputs("mlp", dims, {"activation": "gelu_erf"}, "float32", "normal", 0)
    assert params["up.w"].std() == pytest.approx(128**-0.5, rel=0.05)
    assert params["down.w"].std() == pytest.approx(256**-0.5, rel=0.05)
    assert np.all(params["up.b"] != 0)
    y = evaluate("mlp", {"activation": "gelu_erf"}, params, batch)["y"]
    assert batch["target"].std() == pytest.approx(y.std(), rel=0.05)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("layer", "options"), [("linear", {}), ("linear", {"bias": False}), ("mlp", RELU)])
def test_integer_steps_are_exact_in_any_order(layer: str, options: dict, dtype: str) -> None:
    """Every tensor of the step is an integer (the loss a half) that the dtype holds, for 50 seeds."""
    for seed in range(50):
        params, batch = make_inputs(layer, DIMS, options, dtype, "integers", seed)
        for name, array in {**params, "x": batch["x"]}.items():
            assert set(np.unique(array.astype(np.float64))) == {-1.0, 0.0, 1.0}, name
        step = evaluate(layer, options, params, batch)
        for name, array in step.items():
            assert np.any(array != 0), name
            kind = DTYPES["float32" if name == "loss" and dtype == "bfloat16" else dtype]
            assert np.array_equal(array.astype(kind).astype(np.float64), array), name


def test_shuffled_bfloat16_sums_of_integers_match_oracle_bitwise() -> None:
    params, batch = make_inputs("linear", DIMS, {"bias": False}, "bfloat16", "integers", 0)
    want = evaluate("linear", {"bias": False}, params, batch)["y"]
    rng = np.random.default_rng(0)
    normal, _ = make_inputs("linear", DIMS, {"bias": False}, "bfloat16", "normal", 0)
    changed = 0
    previous = None
    for _ in range(5):
        order = rng.permutation(24)
        total, rounded = np.zeros(want.shape, DTYPES["bfloat16"]), np.zeros(want.shape, DTYPES["bfloat16"])
        for d in order:
            total = total + batch["x"][..., d, None] * params["w"][d]
            rounded = rounded + batch["x"][..., d, None] * normal["w"][d]
        assert np.array_equal(total.astype(np.float64), want)
        changed += previous is not None and not np.array_equal(previous, rounded)
        previous = rounded
    assert changed == 4  # with real operands the order shows


def test_shapes_too_large_to_be_exact_raise_with_the_reason() -> None:
    large = {"B": 64, "S": 128, "D": 24, "F": 48}
    with pytest.raises(
        NotExactError, match=r"linear in bfloat16 with .*'x': \(64, 128, 24\).* above the 256 .*bfloat16"
    ):
        make_inputs("linear", large, {}, "bfloat16", "integers", 0)
    make_inputs("linear", large, {}, "float32", "integers", 0)


def test_inexact_activation_and_unknown_operands_raise() -> None:
    with pytest.raises(NotExactError, match="mlp in float32"):
        make_inputs("mlp", DIMS, {"activation": "gelu_erf"}, "float32", "integers", 0)
    with pytest.raises(ValueError, match="'uniform'"):
        make_inputs("linear", DIMS, {}, "float32", "uniform", 0)
