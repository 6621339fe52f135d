"""Arrays whose arithmetic can be replaced, so that a formula in NumPy can be run under another model of rounding.

A `ModelArray` holds float64 values and hands every operation on them, in the forward and in the backward pass of
`autograd`, to its `Rules`:

- `rounding_model.RoundingModel` perturbs each result as rounding may (Monte Carlo arithmetic).
- `integer_check.IntegerCheck` raises unless each operation is exact in the dtype, in every order of summation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from autograd.extend import VSpace
from autograd.numpy.numpy_boxes import ArrayBox
from autograd.numpy.numpy_vspaces import ArrayVSpace

from parity.contract import DTYPES

# The accumulators of GPU and CPU matrix products: bfloat16 products are summed in float32.
ACCUMULATORS = {"float64": "float64", "float32": "float32", "bfloat16": "float32"}


@dataclass(frozen=True)
class Format:
    """A floating-point format: unit roundoff 2^-bits, smallest normal number, bits of significand."""

    name: str
    unit: float
    tiny: float
    bits: int

    @classmethod
    def of(cls, dtype: str) -> Format:
        info = ml_dtypes.finfo(DTYPES[dtype])
        return cls(dtype, float(info.eps) / 2, float(info.tiny), int(info.nmant) + 1)

    def holds(self, values: np.ndarray) -> np.ndarray:
        """Where the values are numbers of this format."""
        equal: np.ndarray = values.astype(DTYPES[self.name]).astype(np.float64) == values
        return equal


class UnmodelledError(Exception):
    """A formula used an operation whose rounding is not modelled; the message names it."""


class Rules(Protocol):
    """The operations that a ModelArray delegates. All arrays here are plain float64."""

    def load(self, array: np.ndarray) -> np.ndarray:
        """Wrap values that the dtype can hold."""

    def widen(self, y: np.ndarray) -> np.ndarray:
        """The same values in accumulator precision."""

    def store(self, dy: np.ndarray) -> np.ndarray:
        """Round values from accumulator precision to the dtype."""

    def constant(self, values: np.ndarray) -> np.ndarray:
        """Constants of the formula itself, as the dtype stores them."""

    def elementwise(self, ufunc: np.ufunc, operands: list[np.ndarray]) -> np.ndarray: ...

    def contract(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """a @ b, [..., m, n] [..., n, k]."""

    def total(self, terms: np.ndarray) -> np.ndarray:
        """The sum over the last dim."""


COMPARISONS = {np.greater, np.greater_equal, np.less, np.less_equal, np.equal, np.not_equal}

# NumPy functions that move, select or describe data, or that only call ufuncs: they round nothing themselves.
_PASSED_THROUGH: set[Callable[..., Any]] = {
    np.array_split,
    np.concatenate,
    np.iscomplexobj,
    np.ndim,
    np.reshape,
    np.result_type,
    np.shape,
    np.split,
    np.sum,
    np.swapaxes,
    np.transpose,
    np.where,
}


class ModelArray(np.ndarray):
    """Float64 values that delegate every operation to `rules`. Raises UnmodelledError where there is no rule."""

    rules: Rules

    def __array_finalize__(self, source: Any) -> None:
        if isinstance(source, ModelArray):
            self.rules = source.rules

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        rules = next(value.rules for value in inputs if isinstance(value, ModelArray))
        operands = [np.asarray(value) for value in inputs]
        if ufunc is np.add and method == "reduce":
            result = _sum(rules, operands[0], kwargs.get("axis", 0), kwargs.get("keepdims", False))
        elif method != "__call__":
            raise UnmodelledError(f"{ufunc.__name__}.{method}: its rounding is not modelled")
        elif ufunc is np.matmul:
            result = rules.contract(operands[0], operands[1])
        else:
            result = rules.elementwise(ufunc, operands)
        return model_array(result, rules)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func not in _PASSED_THROUGH:
            raise UnmodelledError(f"{func.__name__}: its rounding is not modelled")
        result = super().__array_function__(func, types, args, kwargs)
        return model_array(result, self.rules) if isinstance(result, np.ndarray) else result


ArrayBox.register(ModelArray)
VSpace.register(ModelArray, lambda value: ArrayVSpace(value))


def model_array(values: Any, rules: Rules) -> Any:
    """Values under these rules; values that are not float64 (masks, ids) are returned unchanged."""
    plain = np.asarray(values)
    if plain.dtype != np.float64:
        return plain
    array = plain.view(ModelArray)
    array.rules = rules
    return array


def _sum(rules: Rules, array: np.ndarray, axis: Any, keepdims: bool) -> np.ndarray:
    axes = range(array.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    summed = sorted(operator.index(a) % array.ndim for a in axes)
    kept = [a for a in range(array.ndim) if a not in summed]
    terms = array.transpose(*kept, *summed).reshape(*(array.shape[a] for a in kept), -1)
    result = rules.total(terms)
    return np.expand_dims(result, tuple(summed)) if keepdims else result
