"""How far rounding may take a whole training: `tolerance.bounds_of` with fewer samples, one a task of some processes.

A sample is the training in Monte Carlo arithmetic: the roundings of step t change the parameters that all later steps
start from, so that the bound of a step holds what all steps before it left, grown as the training lets it grow.
Fewer samples know the deviation less well, for which Student's t takes a larger quantile: with 8 samples and one
element 13.3 deviations, where 32 samples take 6.0. The control says that this is narrow enough.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from parity.contract import Case
from parity.reference import Arrays, train
from parity.rounding_model import RoundingModel
from parity.tolerance import bound_of

SAMPLES = 8
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def reference(case: Case, params: Arrays, batch: Arrays, **changes: Any) -> dict[str, np.ndarray]:
    """The training in float64, with changes to the recipe."""
    return train(case.layer, case.options, params, batch, {**case.recipe, **changes})


def sample(case: Case, params: Arrays, batch: Arrays, number: int) -> dict[str, np.ndarray]:
    """The training as rounding may have it, by a stream of random numbers of its own."""
    rng = np.random.default_rng(case.seed).spawn(number + 2)[-1]
    model = RoundingModel(case.dtype, 1, rng)
    return train(case.layer, case.options, params, batch, case.recipe, model)


def reference_and_bounds(
    case: Case, params: Arrays, batch: Arrays, on_sample: Callable[[], None] = lambda: None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The reference's values and the bounds of a framework's distance from them."""
    squares: dict[str, np.ndarray] = {}
    with _processes() as pool:
        future = pool.submit(reference, case, params, batch)
        samples = pool.map(partial(sample, case, params, batch), range(SAMPLES))
        want = future.result()
        for found in samples:
            for name, value in found.items():
                squares[name] = squares.get(name, 0.0) + np.square(value - want[name])
            on_sample()
    return want, {name: bound_of(total, SAMPLES, case.dtype) for name, total in squares.items()}


@contextmanager
def _processes() -> Any:
    """One process a core, each with one thread; started anew, as a fork would copy what threads hold."""
    before: Mapping[str, str | None] = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(SAMPLES, len(os.sched_getaffinity(0))), mp_context=context) as pool:
            yield pool
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
