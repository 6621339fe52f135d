"""The bounds against simulated steps in real low precision: never exceeded by a right step, exceeded by each fault."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np
import pytest
from simulated_steps import STEPS, TP, Arrays, Devices
from textbook import make_inputs

from parity.arithmetic import ACCUMULATORS, UnmodelledError
from parity.contract import DTYPES
from parity.reference import evaluate
from parity.tolerance import bounds, error_in_bounds, ulps

SMALL = {"B": 2, "S": 5, "D": 24, "F": 48}
SIZES = {"small": SMALL, "large": {"B": 2, "S": 32, "D": 96, "F": 384}}
SEEDS = 10


@functools.lru_cache
def question(layer: str, activation: str, dtype: str, seed: int, size: str) -> tuple[Arrays, Arrays, Arrays, Arrays]:
    """Parameters, batch, the right answer and its bounds."""
    options = {"activation": activation}
    params, batch = make_inputs(layer, SIZES[size], options, dtype, "normal", seed)
    want = evaluate(layer, options, params, batch)
    return params, batch, want, bounds(layer, options, params, batch, dtype, TP, seed)


def errors(
    step: str, dtype: str, seed: int, fault: str = "", size: str = "small", op_by_op: bool = True
) -> dict[str, float]:
    """Error in bounds of each tensor of a simulated step."""
    run, layer, options = STEPS[step]
    params, batch, want, bound = question(layer, options.get("activation", ""), dtype, seed, size)
    got = run(Devices(dtype, seed, op_by_op), params, batch, fault, **options)
    assert got.keys() == want.keys() == bound.keys()
    return {name: error_in_bounds(got[name], want[name], bound[name]) for name in want}


@pytest.mark.parametrize(
    ("dtype", "op_by_op"), [("float64", True), ("float32", True), ("bfloat16", True), ("bfloat16", False)]
)
@pytest.mark.parametrize("step", STEPS)
def test_right_steps_match_oracle_within_bounds(step: str, dtype: str, op_by_op: bool) -> None:
    worst = [max(errors(step, dtype, seed, op_by_op=op_by_op).values()) for seed in range(SEEDS)]
    assert max(worst) <= 1.0
    # A bound that no run comes near would explain away faults.
    assert max(worst) > 0.05


FAULTS = [
    ("mlp", "tanh for erf", "y"),
    ("mlp", "bias added tp times", "y"),
    ("mlp", "missing all-reduce", "y"),
    ("mlp", "missing all-reduce of x.grad", "x.grad"),
    ("mlp", "swapped shards", "y"),
    ("mlp_tanh", "tanh for erf", "y"),
    ("row_parallel", "bias added tp times", "y"),
    ("row_parallel", "missing all-reduce", "y"),
    ("row_parallel", "swapped shards", "y"),
    ("column_parallel", "missing all-reduce", "x.grad"),
    ("column_parallel", "swapped shards", "y"),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("step", "fault", "tensor"), FAULTS)
def test_faults_exceed_bounds(step: str, fault: str, tensor: str, dtype: str, size: str) -> None:
    assert errors(step, dtype, 0, fault, size)[tensor] > 10.0


@pytest.mark.parametrize(("step", "fault", "tensor"), [row for row in FAULTS if row[1] != "tanh for erf"])
def test_structural_faults_exceed_bounds_in_bfloat16(step: str, fault: str, tensor: str) -> None:
    for seed in range(3):
        assert errors(step, "bfloat16", seed, fault)[tensor] > 1.0


def test_bfloat16_is_blind_to_tanh_for_erf() -> None:
    # The two GELUs differ by 4.7e-4 at most, an eighth of bfloat16's unit roundoff: judge activations in float32.
    assert max(errors("mlp", "bfloat16", 0, "tanh for erf").values()) < 1.0


def test_bounds_scale_with_unit_roundoff() -> None:
    params, batch = make_inputs("linear", SMALL, {}, "bfloat16", "normal", 0)  # exact in all three dtypes
    bound = {dtype: bounds("linear", {}, params, batch, dtype, 1, 0)["y"] for dtype in ACCUMULATORS}
    ratio = np.median(bound["float32"] / bound["float64"])
    assert ratio == pytest.approx(2.0**29 / np.sqrt(2), rel=0.05)
    assert np.all(bound["bfloat16"] > 100 * bound["float32"])


def test_bounds_are_zero_where_nothing_rounds() -> None:
    params, batch = make_inputs("linear", SMALL, {}, "float32", "normal", 0)
    batch["x"][0, 0] = 0.0
    params["b"][:] = 0.0
    bound = bounds("linear", {}, params, batch, "float32", TP, 0)
    assert np.all(bound["y"][0, 0] == 0)
    assert np.all(bound["y"][0, 1:] > 0)


def test_bounds_refuse_relu_below_float64() -> None:
    options = {"activation": "relu"}
    params, batch = make_inputs("mlp", SMALL, options, "float32", "normal", 0)
    with pytest.raises(UnmodelledError, match=r"greater.*float32"):
        bounds("mlp", options, params, batch, "float32", TP, 0)
    assert np.all(bounds("mlp", options, params, batch, "float64", TP, 0)["loss"] > 0)


def test_error_in_bounds_of_special_values() -> None:
    one, zero = np.ones(2), np.zeros(2)
    assert error_in_bounds(np.array([1.0, 1.5]), one, np.array([1.0, 0.25])) == 2.0
    assert error_in_bounds(one, one, zero) == 0.0
    assert error_in_bounds(one + 1e-300, one, zero) == 0.0
    assert error_in_bounds(np.nextafter(one, 2), one, zero) == np.inf
    assert error_in_bounds(np.array([1.0, np.nan]), one, one) == np.inf
    assert error_in_bounds(np.array([1.0, -np.inf]), one, one) == np.inf
    assert error_in_bounds(np.array([1.0, np.nan]), np.array([1.0, np.nan]), one) == np.inf
    assert error_in_bounds(one, one, np.array([1.0, np.inf])) == np.inf
    assert error_in_bounds(-zero, zero, zero) == 0.0
    assert error_in_bounds(np.float32(3.0), np.float64(1.0), np.float64(0.5)) == 4.0
    with pytest.raises(ValueError, match="shape"):
        error_in_bounds(np.ones((2, 1)), one, one)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_ulps_count_neighbouring_numbers(dtype: str) -> None:
    kind = DTYPES[dtype]
    eps = float(ml_dtypes.finfo(kind).eps)
    want = np.array([1.0, 1.5, 4.0])
    assert ulps((want + eps * np.array([1, 3, 0])).astype(kind), want, dtype) == 3.0
    assert ulps(np.array([4.0 + 4 * eps]).astype(kind), np.array([4.0]), dtype) == 1.0
    assert ulps(want.astype(kind), want, dtype) == 0.0
    assert ulps(np.array([0.0, 0.0]), np.array([0.0, np.nan]), dtype) == np.inf
