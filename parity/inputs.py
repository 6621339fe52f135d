"""State and batch of a case: seeded NumPy arrays, the same for both frameworks and for the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parity.arithmetic import IntegerCheck, NotExactError
from parity.contract import DTYPES
from parity.reference import evaluate, output

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
    """Parameters of these shapes and a batch of these shapes plus "target", rounded to `dtype`.

    operands "normal": inputs ~ N(0, 1), weights ~ N(0, 1 / fan_in), biases ~ N(0, 1/4), target ~ N(0, var y).
    operands "integers": all in {-1, 0, 1}, weights sparse; target = y + {-1, 0, 1}, so that every operation of the
    step is exact in `dtype` in every order of summation (checked).
    ranges: inputs that are ids, with their number; they are int64 in [0, number).
    ignored: of these, the id that says that a place does not count; every fourth does not.
    num_batches: for training, this many normal batches, "batch0.x", "batch0.target" ..., in place of one.
    Raises NotExactError if these shapes or options make exactness impossible, ValueError for other operands.
    """
    if operands not in ("normal", "integers"):
        raise ValueError(f"operands {operands!r}: known are normal, integers")
    draw = _normal if operands == "normal" else _integers
    rng = np.random.default_rng(seed)
    stored = DTYPES[dtype]
    state = {name: draw(rng, shape, True).astype(stored) for name, shape in params.items()}

    def draw_batch() -> tuple[dict[str, np.ndarray], np.ndarray]:
        given = {
            name: np.asarray(rng.integers(ranges[name], size=shape))
            if name in ranges
            else draw(rng, shape, False).astype(stored)
            for name, shape in batch.items()
        }
        for name, none in (ignored or {}).items():
            given[name].flat[::4] = none
        return given, output(layer, options, state, given)

    if operands == "normal":
        batches: dict[str, np.ndarray] = {}
        for i in range(num_batches or 1):
            given, y = draw_batch()
            given["target"] = (y.std() * rng.standard_normal(y.shape)).astype(stored)
            batches |= {f"batch{i}.{name}" if num_batches else name: array for name, array in given.items()}
        return state, batches
    given, y = draw_batch()
    exact = {**given, "target": (y + _integers(rng, y.shape, False)).astype(stored)}
    try:
        evaluate(layer, options, state, exact, IntegerCheck(dtype))
    except NotExactError as error:
        shapes = {name: tuple(shape) for name, shape in {**params, **batch}.items()}
        raise NotExactError(f"{layer} in {dtype} with {shapes} is not exact: {error}") from error
    return state, exact


def _normal(rng: np.random.Generator, shape: Sequence[int], is_param: bool) -> np.ndarray:
    values: np.ndarray = rng.standard_normal(shape)
    scale = 1.0 if not is_param else shape[0] ** -0.5 if len(shape) > 1 else 0.5
    return scale * values


def _integers(rng: np.random.Generator, shape: Sequence[int], is_param: bool) -> np.ndarray:
    density = min(0.5, _NONZEROS / shape[0]) if is_param and len(shape) > 1 else 0.5
    values: np.ndarray = rng.choice([-1.0, 0.0, 1.0], shape, p=[density / 2, 1 - density, density / 2])
    return values
