"""State and batch of a case: seeded NumPy arrays, the same for both frameworks and for the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parity.contract import DTYPES
from parity.integer_check import IntegerCheck, NotExactError
from parity.reference import Arrays, evaluate, output

# Non-zero entries a column of an integer weight: the expected size of a sum of products does not grow with fan-in.
_NONZEROS = 4


def make_inputs(
    layer: str,
    options: Mapping[str, Any],
    params: Mapping[str, Sequence[int]],
    batch: Mapping[str, Sequence[int]],
    ranges: Mapping[str, int],
    dtype: str,
    operands: str,
    seed: int,
    ignored: Mapping[str, int] | None = None,
    num_batches: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters and a batch of these shapes, plus the loss's "target", rounded to `dtype`.

    operands "normal": inputs ~ N(0, 1), weights ~ N(0, 1 / fan_in), biases ~ N(0, 1/4), target ~ N(0, var y).
    operands "integers": all in {-1, 0, 1}, weights sparse; target = y + {-1, 0, 1}, so that every operation of the
    step is exact in `dtype` in every order of summation (checked).
    ranges: for each input that holds ids, how many ids there are; such inputs are int64 in [0, number).
    ignored: for each input with an ignore index, that index; every fourth element is set to it.
    num_batches: for training, the number of batches, named "batch0.x", "batch0.target" ...; 0 for one unnamed batch.
    Raises NotExactError if these shapes or options make exactness impossible, ValueError for unknown operands.
    """
    if operands not in ("normal", "integers"):
        raise ValueError(f"operands {operands!r}: known are normal, integers")
    is_integer = operands == "integers"
    draw = _integers if is_integer else _normal
    rng = np.random.default_rng(seed)
    stored = DTYPES[dtype]

    def draw_input(name: str, shape: Sequence[int]) -> np.ndarray:
        if name not in ranges:
            return draw(rng, shape, False).astype(stored)
        ids = np.asarray(rng.integers(ranges[name], size=shape))
        if ignored and name in ignored:
            ids.flat[::4] = ignored[name]
        return ids

    state = {name: draw(rng, shape, True).astype(stored) for name, shape in params.items()}
    arrays: dict[str, np.ndarray] = {}
    for i in range(num_batches or 1):
        drawn = {name: draw_input(name, shape) for name, shape in batch.items()}
        y = output(layer, options, state, drawn)
        target = y + _integers(rng, y.shape, False) if is_integer else y.std() * rng.standard_normal(y.shape)
        drawn["target"] = target.astype(stored)
        arrays |= {f"batch{i}.{name}" if num_batches else name: array for name, array in drawn.items()}
    if is_integer:
        _check_exact(layer, options, state, arrays, dtype)
    return state, arrays


def _check_exact(layer: str, options: Mapping[str, Any], state: Arrays, batch: Arrays, dtype: str) -> None:
    try:
        evaluate(layer, options, state, batch, IntegerCheck(dtype))
    except NotExactError as error:
        shapes = {name: array.shape for name, array in {**state, **batch}.items() if name != "target"}
        raise NotExactError(f"{layer} in {dtype} with {shapes} is not exact: {error}") from error


def _normal(rng: np.random.Generator, shape: Sequence[int], is_param: bool) -> np.ndarray:
    values: np.ndarray = rng.standard_normal(shape)
    scale = 1.0 if not is_param else shape[0] ** -0.5 if len(shape) > 1 else 0.5
    return scale * values


def _integers(rng: np.random.Generator, shape: Sequence[int], is_param: bool) -> np.ndarray:
    density = min(0.5, _NONZEROS / shape[0]) if is_param and len(shape) > 1 else 0.5
    values: np.ndarray = rng.choice([-1.0, 0.0, 1.0], shape, p=[density / 2, 1 - density, density / 2])
    return values
