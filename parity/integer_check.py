"""Proof that a formula is exact on integers: the same bits in a dtype, in every order of summation, however sharded."""

from __future__ import annotations

import numpy as np

from parity.arithmetic import ACCUMULATORS, COMPARISONS, Format, model_array


class NotExactError(ValueError):
    """An operation on integers is not exact in the dtype in every order of summation; the message names it."""


class IntegerCheck:
    """Rules by which every result must be representable in the dtype, and every sum exact in any order or split.

    A sum of integers is exact if sum |terms| <= 2^bits: no partial sum then leaves the integers that the dtype holds.
    For bfloat16 that is 256, since the devices' partial sums are stored in bfloat16; its loss is summed in float32.
    Raises NotExactError.
    """

    def __init__(self, dtype: str) -> None:
        self.format = Format.of(dtype)
        # The magnitudes are themselves summed in float64, where 2^53 + 1 rounds to 2^53.
        self.limit = 2.0 ** min(self.format.bits, 52)

    def load(self, array: np.ndarray) -> np.ndarray:
        values = np.asarray(array, np.float64)
        self._check_held("input", values)
        loaded: np.ndarray = model_array(values, self)
        return loaded

    def widen(self, y: np.ndarray) -> np.ndarray:
        return IntegerCheck(ACCUMULATORS[self.format.name]).load(y)

    def store(self, dy: np.ndarray) -> np.ndarray:
        return self.load(dy)

    def constant(self, values: np.ndarray) -> np.ndarray:
        return self.load(values)

    def elementwise(self, ufunc: np.ufunc, operands: list[np.ndarray]) -> np.ndarray:
        result = np.asarray(ufunc(*operands))
        if ufunc not in COMPARISONS:
            self._check_held(ufunc.__name__, result)
        return result

    def contract(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        self._check_sum("matmul", np.abs(a) @ np.abs(b), a, b)
        product: np.ndarray = a @ b
        return product

    def total(self, terms: np.ndarray) -> np.ndarray:
        self._check_sum("sum", np.abs(terms).sum(-1), terms)
        return np.asarray(terms.sum(-1))

    def _check_held(self, op: str, values: np.ndarray) -> None:
        held = self.format.holds(values)
        if not held.all():
            raise NotExactError(f"{op} gives {values[~held].flat[0]:.17g}, which {self.format.name} cannot hold")

    def _check_sum(self, op: str, magnitudes: np.ndarray, *operands: np.ndarray) -> None:
        if not all(np.array_equal(value, np.rint(value)) for value in operands):
            raise NotExactError(f"{op} of numbers that are not integers")
        if magnitudes.size and magnitudes.max() > self.limit:
            raise NotExactError(
                f"{op} adds terms of total size {magnitudes.max():.0f}, above the {self.limit:.0f} up to which "
                f"{self.format.name} adds integers exactly in every order"
            )
