"""Layer norm and RMS norm against their definitions, token by token, and their gradients against differences."""

from __future__ import annotations

import numpy as np
import pytest

from parity.arithmetic import Format, ModelArray
from parity.contract import DTYPES
from parity.inputs import make_inputs
from parity.reference import evaluate
from parity.reference.precision import narrow, widen
from parity.rounding_model import RoundingModel
from parity.tolerance import bounds, error_in_bounds

X = (2, 3, 7)
CASES = [("layer_norm", True), ("layer_norm", False), ("rms_norm", False)]


def inputs(kind: str, has_bias: bool, dtype: str = "float64"):
    options = {"kind": kind, "eps": 1e-2}  # as large as to matter
    params = {"scale": X[-1:], "b": X[-1:]} if has_bias else {"scale": X[-1:]}
    return options, *make_inputs("norm", options, params, {"x": X}, {}, dtype, "normal", 4)


@pytest.mark.parametrize(("kind", "has_bias"), CASES)
def test_output_matches_definition_token_by_token(kind: str, has_bias: bool) -> None:
    options, params, batch = inputs(kind, has_bias)
    y = evaluate("norm", options, params, batch)["y"]
    for b, s in np.ndindex(X[:2]):
        token = batch["x"][b, s]
        mean = np.mean(token) if kind == "layer_norm" else 0.0
        expected = params["scale"] * (token - mean) / np.sqrt(np.mean((token - mean) ** 2) + 1e-2)
        expected = expected + params.get("b", 0.0)
        assert y[b, s] == pytest.approx(expected, rel=1e-13, abs=1e-14)
        other = params["scale"] * token / np.sqrt(np.mean(token**2))  # no mean, no eps
        assert y[b, s] != pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize(("kind", "has_bias"), CASES)
def test_gradients_match_finite_differences(kind: str, has_bias: bool) -> None:
    options, params, batch = inputs(kind, has_bias)
    got = evaluate("norm", options, params, batch)
    step = 1e-6
    for name, array in {"x": batch["x"], **params}.items():
        for index in np.ndindex(array.shape):
            kept = array[index]
            loss = []
            for moved in (kept + step, kept - step):
                array[index] = moved
                loss.append(evaluate("norm", options, params, batch)["loss"])
            array[index] = kept
            numeric = (loss[0] - loss[1]) / (2 * step)
            assert got[f"{name}.grad"][index] == pytest.approx(numeric, abs=1e-7)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_part_of_the_tokens_and_another_eps_exceed_the_bound(kind: str, dtype: str) -> None:
    """The faults of this layer: a weight gradient that is not summed over the devices, the other framework's eps."""
    options, params, batch = inputs(kind, kind == "layer_norm", dtype)
    want, bound = evaluate("norm", options, params, batch), bounds("norm", options, params, batch, dtype, 1, 0)
    part = evaluate("norm", options, params, {name: array[:, :1] for name, array in batch.items()})
    assert error_in_bounds(part["scale.grad"], want["scale.grad"], bound["scale.grad"]) > 100
    small, other = {"kind": kind, "eps": 1e-5}, {"kind": kind, "eps": 1e-6}
    bound = bounds("norm", small, params, batch, dtype, 1, 0)
    right, wrong = (evaluate("norm", option, params, batch)["y"] for option in (small, other))
    assert error_in_bounds(wrong, right, bound["y"]) > 3
    assert error_in_bounds(right.astype(dtype), right, bound["y"]) < 1


def test_variance_as_a_difference_of_means_exceeds_the_bound_where_the_mean_is_large() -> None:
    """Flax's default, use_fast_variance: mean(x^2) - mean(x)^2 cancels."""
    options, params, batch = inputs("layer_norm", True, "float32")
    batch = {**batch, "x": batch["x"] + np.float32(1e3)}
    want, bound = evaluate("norm", options, params, batch)["y"], bounds("norm", options, params, batch, "float32", 1, 0)
    x, scale, b = batch["x"], params["scale"], params["b"]
    centred, variance = x - x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    fast = np.mean(x * x, -1, keepdims=True) - x.mean(-1, keepdims=True) ** 2
    right, wrong = (centred / np.sqrt(one + np.float32(1e-2)) * scale + b for one in (variance, fast))
    assert right.dtype == wrong.dtype == np.float32
    assert error_in_bounds(right, want, bound["y"]) < 1
    assert error_in_bounds(wrong, want, bound["y"]) > 10


def test_bfloat16_is_computed_in_float32_and_rounded_where_it_is_stored() -> None:
    rules = RoundingModel("bfloat16", 1, np.random.default_rng(0))
    x = rules.load(np.full(1000, 1.5))
    wide = widen(x)
    assert isinstance(wide, ModelArray)
    assert np.array_equal(np.asarray(wide), np.asarray(x))
    fine, coarse = Format.of("float32").unit, Format.of("bfloat16").unit
    error = np.abs(np.asarray(wide * wide) - 2.25)
    assert 0 < error.max() <= 2.25 * fine
    error = np.abs(np.asarray(narrow(wide * wide, x)) - 2.25)
    assert 0.5 * 2.25 * coarse < error.max() <= 2.25 * coarse * 1.01
    assert np.array_equal(widen(np.ones(2)), narrow(np.ones(2), np.zeros(2)))


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_gradients_summed_over_tokens_in_bfloat16_stay_within_the_bound(kind: str) -> None:
    """As PyTorch does on CPUs, one token after the other; a sum in which one token is missing does not pass for it."""
    options, dtype = {"kind": kind, "eps": 1e-5}, DTYPES["bfloat16"]
    for seed in range(10):
        params = {"scale": (8,)}
        state, batch = make_inputs("norm", options, params, {"x": (3, 12, 8)}, {}, "bfloat16", "normal", seed)
        want, bound = (
            evaluate("norm", options, state, batch),
            bounds("norm", options, state, batch, "bfloat16", 1, seed),
        )
        wide = batch["x"].astype(np.float64)
        wide = wide - wide.mean(-1, keepdims=True) if kind == "layer_norm" else wide
        unit = wide / np.sqrt(np.mean(wide**2, -1, keepdims=True) + 1e-5)
        dy = (want["y"].astype(dtype).astype(np.float64) - batch["target"].astype(np.float64)).astype(dtype)
        terms = (dy.astype(np.float64) * unit).reshape(-1, 8).astype(dtype)
        total = np.zeros(8, dtype)
        for term in terms:
            total = total + term
        assert error_in_bounds(total.astype(np.float64), want["scale.grad"], bound["scale.grad"]) < 1
        part = total.astype(np.float64) - terms[np.argmax(np.abs(terms[:, 0].astype(np.float64)))].astype(np.float64)
        assert error_in_bounds(part, want["scale.grad"], bound["scale.grad"]) > 1
