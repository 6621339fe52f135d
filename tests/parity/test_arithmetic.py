from __future__ import annotations

from itertools import permutations

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad

from parity.arithmetic import ACCUMULATORS, Format, ModelArray, UnmodelledError, model_array
from parity.integer_check import IntegerCheck, NotExactError
from parity.rounding_model import RoundingModel


def model(dtype: str, num_devices: int = 1) -> RoundingModel:
    return RoundingModel(dtype, num_devices, np.random.default_rng(0))


def deviation(samples: list[np.ndarray], exact: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(np.array(samples) - exact), 0))


def test_formats_match_ieee() -> None:
    assert [Format.of(dtype).unit for dtype in ACCUMULATORS] == [2.0**-53, 2.0**-24, 2.0**-8]
    assert [Format.of(dtype).bits for dtype in ACCUMULATORS] == [53, 24, 8]
    assert Format.of("bfloat16").tiny == Format.of("float32").tiny == 2.0**-126
    assert Format.of("bfloat16").holds(np.array([256.0, 257.0, 258.0])).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", ACCUMULATORS)
def test_elementwise_noise_matches_unit_roundoff(dtype: str) -> None:
    x = model(dtype).load(np.full(4000, 1.5))
    error = np.asarray(x * x) - 2.25
    unit = Format.of(dtype).unit
    # In float64 one number up or down in half of the cases, elsewhere uniform.
    spread = np.spacing(2.25) / np.sqrt(2) if dtype == "float64" else 2.25 * unit / np.sqrt(3)
    assert np.abs(error).max() <= 2.25 * unit * (1 + 1e-6) + 2.0**-52
    assert np.sqrt(np.mean(error**2)) == pytest.approx(spread, rel=0.1)


def test_noise_in_float64_is_not_lost_above_a_power_of_two() -> None:
    """There u |x| is half the spacing of the numbers: the bound of a parameter came out as 0, and JAX was 1 ulp off."""
    x = model("float64").load(np.full(4000, 1.001))
    assert np.mean(np.asarray(x * np.float64(1.001)) != 1.001 * 1.001) == pytest.approx(0.5, abs=0.05)


def test_exact_operations_have_no_noise() -> None:
    x = model("bfloat16").load(np.array([1.0, 3.0, 0.0]))
    plain = np.asarray(x)
    for result, exact in ((x * 2.0, plain * 2), (0.5 * x, plain / 2), (-x, -plain), (x + np.zeros(3), plain)):
        assert isinstance(result, ModelArray)
        assert np.array_equal(np.asarray(result), exact)
    assert np.asarray(x * 3.0)[2] == 0.0
    assert not np.array_equal(np.asarray(x * 3.0), [3.0, 9.0, 0.0])


def test_inexact_constant_has_one_error_for_all_elements() -> None:
    x = model("float32").load(np.ones(2000))
    error = np.asarray(x * np.sqrt(0.5)) / np.sqrt(0.5) - 1
    shared = error.mean()
    assert abs(shared) > 3 * error.std() / np.sqrt(2000)  # not the mean of independent errors
    assert error.std() == pytest.approx(2.0**-24 / np.sqrt(3), rel=0.1)


def test_table_of_constants_has_one_error_for_each_entry_that_is_not_held() -> None:
    table = np.array([0.5, 0.3, 0.1])
    loaded = np.asarray(model("float32").constant(table))
    assert loaded[0] == 0.5
    assert np.all((loaded != table)[1:])
    assert np.all(np.abs(loaded - table) <= 2.0**-24 * table)
    assert np.array_equal(np.asarray(model("float64").constant(table)), table)


def test_underflow_may_flush_to_zero() -> None:
    x = model("float32").load(np.full(100, 1e-25))
    product = np.asarray(x * x)  # 1e-50, far below the smallest normal number of float32
    assert np.abs(product).max() > 1e-39


def test_sum_noise_matches_mean_over_all_orders() -> None:
    """The closed formula of the partial sums against every one of the 7! orders."""
    terms = np.random.default_rng(1).standard_normal(7)
    in_order = np.mean([np.sum(np.cumsum(order)[1:] ** 2) for order in permutations(terms)])
    n, s, q = 7, terms.sum(), np.sum(terms**2)
    assert (n + 1) / 6 * (2 * s**2 + q) - q / n == pytest.approx(in_order, rel=1e-12)
    # In the model the part from q is drawn with exponential tails, 3.17 times as wide.
    expected = 2.0**-24 * np.sqrt(((n + 1) / 6 * (2 * s**2 + 3.173**2 * q) - q / n) / 3)
    x = model("float32").load(terms)
    assert deviation([np.asarray(np.sum(x)) for _ in range(4000)], s) == pytest.approx(expected, rel=0.05)


def test_tail_of_sums_in_unlucky_orders_stays_below_the_enlarged_normal() -> None:
    """P(|e| > T sigma) <= 4 exp(-pi T / sqrt 6) for bridges, where a normal tail is soon far too small."""
    rng = np.random.default_rng(2)
    steps = rng.standard_normal((20000, 64))
    bridge = np.cumsum(steps - steps.mean(1, keepdims=True), 1)
    error = np.sum(bridge * rng.uniform(-1, 1, bridge.shape), 1)
    scaled = np.abs(error) / np.sqrt(np.mean(error**2))
    for deviations in (3.0, 4.0, 5.0):
        share = np.mean(scaled > deviations)
        assert share <= 4 * np.exp(-np.pi * deviations / np.sqrt(6))
    assert np.mean(scaled > 4.0) > 3 * 6.3e-5  # normal


@pytest.mark.parametrize("num_devices", [1, 4])
def test_bfloat16_contraction_noise_matches_split_over_devices(num_devices: int) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((1, 32)), rng.standard_normal((32, 200))
    rules = model("bfloat16", num_devices)
    exact = a @ b
    spread = deviation([np.asarray(np.matmul(rules.load(a), rules.load(b))) for _ in range(300)], exact)
    shards = zip(np.split(a, num_devices, 1), np.split(b, num_devices), strict=True)
    partials = np.stack([left @ right for left, right in shards])
    one_device = 2.0**-8 / np.sqrt(3) * np.sqrt(np.sum(partials**2, 0))
    if num_devices == 1:
        assert np.median(spread / one_device) == pytest.approx(1.0, rel=0.05)
    else:
        assert np.all(spread > 0.9 * one_device)
        assert np.median(spread / one_device) < 2.0


def test_gradients_are_modelled_too() -> None:
    rules = model("float32")
    x = np.linspace(-1, 1, 50)
    noisy = grad(lambda v: anp.sum(anp.exp(v) * v))(rules.load(x))
    exact = np.exp(x) * (1 + x)
    assert isinstance(noisy, ModelArray)
    error = np.abs(np.asarray(noisy) - exact)
    assert np.all(error < 20 * 2.0**-24 * np.exp(x))
    assert np.count_nonzero(error) > 45


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda x: np.dot(x, x), "dot"),
        (lambda x: np.einsum("i,i", x, x), "einsum"),
        (lambda x: np.cumsum(x), "cumsum"),
        (lambda x: np.multiply.reduce(x), r"multiply\.reduce"),
        (lambda x: np.arctan(x), "arctan"),
        (lambda x: x > 0, "greater"),
    ],
)
def test_operations_without_a_model_are_refused(operation, name: str) -> None:
    with pytest.raises(UnmodelledError, match=name):
        operation(model("float32").load(np.ones(3)))


@pytest.mark.parametrize("dtype", ACCUMULATORS)
def test_integer_sums_up_to_the_limit_pass_and_above_raise(dtype: str) -> None:
    rules = IntegerCheck(dtype)
    half = rules.limit / 2
    at_limit = rules.load(np.array([[half, -half]]))
    assert np.asarray(np.matmul(at_limit, rules.load(np.ones((2, 1))))) == 0.0
    # The sum is 0 in exact arithmetic and in any one order, but not every order passes only through held integers.
    above = rules.load(np.array([[half, -half, 1.0]]))
    with pytest.raises(NotExactError, match=f"matmul.*{dtype}"):
        np.matmul(above, rules.load(np.ones((3, 1))))
    with pytest.raises(NotExactError, match=f"sum.*{dtype}"):
        np.sum(above)


def test_integer_check_names_the_inexact_operation() -> None:
    x = IntegerCheck("bfloat16").load(np.array([129.0, 130.0]))
    with pytest.raises(NotExactError, match="add gives 257, which bfloat16 cannot hold"):
        x + 128.0
    with pytest.raises(NotExactError, match="input gives 257"):
        IntegerCheck("bfloat16").load(np.array([257.0]))
    with pytest.raises(NotExactError, match="exp gives"):
        np.exp(x * 0.0 + 1.0)
    with pytest.raises(NotExactError, match="not integers"):
        np.sum(x * 0.5)


def test_integer_check_widens_the_loss_of_bfloat16() -> None:
    rules = IntegerCheck("bfloat16")
    y = rules.load(np.full(300, 2.0))
    assert np.asarray(np.sum(rules.widen(y))) == 600.0
    with pytest.raises(NotExactError):
        np.sum(y)


def test_sum_over_any_axes_matches_numpy() -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    x = model_array(values, IntegerCheck("float64"))
    for axis in (None, 0, -1, (0, 2), (1, 0)):
        for keepdims in (False, True):
            got = np.sum(x, axis=axis, keepdims=keepdims)
            assert np.array_equal(np.asarray(got), values.sum(axis=axis, keepdims=keepdims))
            assert isinstance(got, ModelArray)
