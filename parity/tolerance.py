"""How large a difference rounding explains: a derived bound for every element of every tensor.

The formula is run SAMPLES times under `RoundingModel`; the root mean square of an element's errors estimates the
standard deviation of a framework's error there. For normal errors, error over estimate follows Student's t with SAMPLES
degrees of freedom (not the normal distribution, as the estimate is itself noisy). Real errors are sums of bounded
roundings, whose tails are lighter, except in long sums, for which the model enlarges the deviation. The quantile at
P_FALSE / (2 N) for a tensor of N elements bounds the probability of a false alarm by P_FALSE per tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import scipy.stats

from parity.arithmetic import Format
from parity.contract import DTYPES
from parity.reference import Arithmetic, Arrays, evaluate
from parity.rounding_model import RoundingModel

Evaluation = Callable[[Arithmetic | None], Mapping[str, np.ndarray]]

# The full suite compares some 10^3 tensors, so one run in 10^3 would show a false alarm.
P_FALSE = 1e-6
# More samples lower the quantile only slowly: for 1000 elements it is 8.5 at 32 samples, 6.7 at 100, 6.1 at infinity.
SAMPLES = 32


def bounds(
    layer: str,
    options: Mapping[str, Any],
    params: Arrays,
    batch: Arrays,
    dtype: str,
    num_devices: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """The largest difference from `evaluate` that rounding in `dtype` explains, for each element of each tensor.

    bound = t sqrt(mean_samples e^2) sqrt(1 + (u64 / u)^2): the last factor is the rounding of the oracle itself.
    Where no sample has an error the bound is 0, and the element must be equal.
    Raises UnmodelledError for a formula that branches on rounded values (relu) in a dtype below float64.
    """
    return bounds_of(partial(evaluate, layer, options, params, batch), dtype, num_devices, seed)


def bounds_of(evaluation: Evaluation, dtype: str, num_devices: int, seed: int) -> dict[str, np.ndarray]:
    """`bounds` for any evaluation that takes an arithmetic, such as a step or a training run."""
    want = evaluation(None)
    # A stream of its own: the inputs are drawn from this seed too.
    model = RoundingModel(dtype, num_devices, np.random.default_rng(seed).spawn(1)[0])
    squares = {name: np.zeros_like(value) for name, value in want.items()}
    for _ in range(SAMPLES):
        for name, value in evaluation(model).items():
            squares[name] += np.square(value - want[name])
    return {name: bound_of(total, SAMPLES, dtype) for name, total in squares.items()}


def bound_of(squares: np.ndarray, num_samples: int, dtype: str) -> np.ndarray:
    """The bound of each element of a tensor, from the sum of its squared errors over num_samples samples."""
    oracle = np.hypot(1.0, Format.of("float64").unit / Format.of(dtype).unit)
    quantile = scipy.stats.t.isf(P_FALSE / (2 * max(squares.size, 1)), num_samples)
    bound: np.ndarray = oracle * quantile * np.sqrt(squares / num_samples)
    return bound


def error_in_bounds(got: np.ndarray, want: np.ndarray, bound: np.ndarray) -> float:
    """max |got - want| / bound; above 1, rounding does not explain the difference.

    A difference where the bound is 0, and any NaN or infinity (also in the reference or the bound), count as infinity.
    0 and -0 are equal: which of them a sum of zeros gives depends on its order.
    Raises ValueError for different shapes.
    """
    got, want = _same_shape(got, want)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(got - want) / bound
    ratio[got == want] = 0.0
    ratio[~(np.isfinite(got) & np.isfinite(want) & np.isfinite(bound)) | np.isnan(ratio)] = np.inf
    return float(ratio.max(initial=0.0))


def ulps(got: np.ndarray, want: np.ndarray, dtype: str) -> float:
    """max |got - want| in units in the last place of `want` in `dtype`, 1 for integers.

    Raises ValueError for different shapes.
    """
    got, want = _same_shape(got, want)
    if np.issubdtype(DTYPES[dtype], np.integer):
        return float(np.abs(got - want).max(initial=0.0))
    info = ml_dtypes.finfo(DTYPES[dtype])
    exponent = np.maximum(np.frexp(want)[1] - 1, info.minexp)
    error = np.abs(got - want) / np.ldexp(1.0, exponent - info.nmant)
    error[~np.isfinite(error)] = np.inf
    return float(error.max(initial=0.0))


def _same_shape(got: np.ndarray, want: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if got.shape != want.shape:
        raise ValueError(f"shape {got.shape} where the reference has {want.shape}")
    return np.array(got, np.float64, ndmin=1), np.array(want, np.float64, ndmin=1)
