"""Monte Carlo arithmetic (Parker 1997): run a formula with a random error of the size of rounding at every operation.

The spread of many such runs is the rounding noise of an implementation, whatever its order of summation.
"""

from __future__ import annotations

import functools
import itertools
import math
from statistics import NormalDist

import numpy as np

from parity.arithmetic import ACCUMULATORS, COMPARISONS, Format, UnmodelledError, model_array

_EXACT = {np.negative, np.absolute, np.maximum, np.minimum}
_CORRECTLY_ROUNDED = {np.add, np.subtract, np.multiply, np.divide, np.square, np.sqrt}
# Error of elementary functions in units of u, in addition to the rounding of the result: measured over [-6, 6], XLA's
# CPU erf and tanh err by up to 5 u (torch's by 1 u, 4 u for the float64 erf); NVIDIA documents 2 ulp = 4 u for erff and
# tanhf.
_FUNCTION_UNITS = 4.0
_FUNCTIONS = {"erf", "tanh", "exp", "log", "power", "cos"}


# The factor by which the deviation of accumulation noise is enlarged: see RoundingModel.
_RAREST = 1e-12  # P_FALSE of tolerance.py for one of 10^6 elements
_ORDER_TAIL = math.sqrt(6) / math.pi * math.log(4 / _RAREST) / NormalDist().inv_cdf(1 - _RAREST / 2)  # 3.2


class RoundingModel:
    """Each result x becomes x (1 + u xi), xi uniform in (-1, 1); sums get the noise of all their partial sums.

    A sequential sum of n terms p_k rounds its partial sums s_2 .. s_n, which leaves the error sum_k u s_k xi_k with
    variance u^2 / 3 sum_k s_k^2. The operands are random and exchangeable, so any fixed order of summation is
    statistically a random one, for which E sum_(k=1..n) s_k^2 = (n + 1) (2 s^2 + q) / 6, s = sum p_k, q = sum p_k^2.
    Blocked and pairwise sums round less. (Higham & Mary 2019 bound the same error by sqrt(n) u |A||B| for the worst
    order; for terms of mean zero that is sqrt(n) times what occurs, and would hide faults.)

    The actual order may be an unlucky one. The contribution of q is a random bridge, and a normal deviate whose
    variance is the bridge's integrated square has the characteristic function sqrt(theta / sinh theta), the square
    root of the logistic distribution's; so P(|e| > T sigma) <= 4 exp(-pi T / sqrt 6): the tails are exponential, not
    normal. The deviation of that contribution is enlarged until a normal tail covers the exponential one down to the
    smallest probability in use.

    Where storage is coarser than the accumulator of products (bfloat16), a contraction is split over `num_devices`:
    each holds a partial sum, rounded to storage, and these are added in random order, rounding at each addition. Plain
    sums accumulate in storage precision: XLA's CPU backend sums bfloat16 in bfloat16 (PyTorch in float32).

    Results below the smallest normal number may be flushed to zero. x + 0, x 1 and x 2^k are exact. A constant that
    the dtype cannot hold (sqrt(1/2)) has the same error for all elements. Comparisons of rounded values are rejected
    below float64, since a flipped branch (ReLU at |z| < u) is not noise; judge those with integers or in float64.
    """

    def __init__(self, dtype: str, num_devices: int, rng: np.random.Generator) -> None:
        self.storage = Format.of(dtype)
        self.accumulator = self.storage if ACCUMULATORS[dtype] == dtype else Format.of(ACCUMULATORS[dtype])
        self.num_devices = num_devices
        self.rng = rng

    def load(self, array: np.ndarray) -> np.ndarray:
        loaded: np.ndarray = model_array(np.asarray(array, np.float64), self)
        return loaded

    def widen(self, y: np.ndarray) -> np.ndarray:
        return RoundingModel(self.accumulator.name, self.num_devices, self.rng).load(y)

    def store(self, dy: np.ndarray) -> np.ndarray:
        plain = np.asarray(dy)
        return self.load(plain if self.storage is self.accumulator else self._round(plain))

    def constant(self, values: np.ndarray) -> np.ndarray:
        return self.load(np.where(self.storage.holds(values), values, self._round(values)))

    def _round(self, values: np.ndarray, function_units: float = 0.0) -> np.ndarray:
        relative = self.storage.unit + function_units * self.accumulator.unit
        size = np.maximum(relative * np.abs(values), self.storage.tiny)
        if self.storage.name == "float64":  # the model's own numbers: less than their spacing would mostly be lost
            size = np.maximum(size, np.spacing(np.abs(values)))
        noise: np.ndarray = values + np.where(values != 0, size, 0.0) * self.rng.uniform(-1, 1, values.shape)
        return noise

    def elementwise(self, ufunc: np.ufunc, operands: list[np.ndarray]) -> np.ndarray:
        if ufunc in COMPARISONS:
            if self.storage.name != "float64":
                raise UnmodelledError(f"{ufunc.__name__}: a branch on values rounded to {self.storage.name}")
            compared: np.ndarray = ufunc(*operands)
            return compared
        if ufunc is np.power and operands[1].ndim == 0 and operands[1] == 1:
            return operands[0]
        result: np.ndarray = np.asarray(ufunc(*[self._constant(value) for value in operands]))
        if ufunc in _EXACT:
            return result
        if ufunc.__name__ in _FUNCTIONS:
            return self._round(result, _FUNCTION_UNITS)
        if ufunc not in _CORRECTLY_ROUNDED:
            raise UnmodelledError(f"{ufunc.__name__}: its rounding is not modelled")
        if ufunc is np.multiply and any(_is_power_of_two(value) for value in operands):
            return result
        rounded = self._round(result)
        if ufunc in (np.add, np.subtract):
            return np.where((operands[0] == 0) | (operands[1] == 0), result, rounded)
        return rounded

    def _constant(self, value: np.ndarray) -> np.ndarray:
        if value.ndim or self.storage.holds(value):
            return value
        return self._round(value)

    def contract(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        n = a.shape[-1]
        total, squares = a @ b, np.square(a) @ np.square(b)
        # Each product is rounded too (not in a fused multiply-add).
        noise = self._normal(self.accumulator, _partial_squares(n, total, squares) + squares)
        if self.storage is not self.accumulator:
            edges = np.linspace(0, n, min(n, self.num_devices) + 1).astype(int)
            partials = [self._round(a[..., i:j] @ b[..., i:j, :]) for i, j in itertools.pairwise(edges)]
            self.rng.shuffle(partials)
            total = functools.reduce(lambda running, partial: self._round(running + partial), partials)
        noisy: np.ndarray = total + noise
        return noisy

    def total(self, terms: np.ndarray) -> np.ndarray:
        n, total = terms.shape[-1], terms.sum(-1)
        noise = self._normal(self.storage, _partial_squares(n, total, np.square(terms).sum(-1)))
        noisy: np.ndarray = np.asarray(total + noise)
        return noisy

    def _normal(self, precision: Format, squares: np.ndarray) -> np.ndarray:
        deviation = precision.unit * np.sqrt(squares / 3)
        noise: np.ndarray = deviation * self.rng.standard_normal(np.shape(deviation))
        return noise


def _partial_squares(n: int, total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Sum of the squares of the partial sums s_2 .. s_n of n terms; see RoundingModel."""
    if n == 1:
        return np.zeros_like(total)
    expected: np.ndarray = (n + 1) / 6 * (2 * np.square(total) + _ORDER_TAIL**2 * squares) - squares / n
    return expected


def _is_power_of_two(value: np.ndarray) -> bool:
    return value.ndim == 0 and bool(np.abs(np.frexp(value)[0]) == 0.5)
