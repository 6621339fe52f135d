"""Steps of training: AdamW (1711.05101) with warm-up, cosine decay and clipping by the global norm (1211.5063).

The rule is that of `torch_tp/optimizer.py` and `jax_tp/optimizer.py`, in the order in which PyTorch computes it: decay
of the parameter first, which rounds it once more than Optax does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parity.reference.evaluate import Arithmetic, Float64, evaluate
from parity.reference.formula import Arrays, Options

Recipe = Mapping[str, Any]


def train(
    layer: str,
    options: Options,
    params: Arrays,
    batch: Arrays,
    recipe: Recipe,
    arithmetic: Arithmetic | None = None,
) -> dict[str, np.ndarray]:
    """Loss and gradient norm (before clipping) of every step, parameters and both moments of those to record.

    `batch` holds "batch<i>.x", "batch<i>.target" ..., one i a microbatch. By default in float64. Returns float64 arrays
    {"step<t>.loss", "step<t>.norm", "step<t>.<parameter>", "step<t>.<parameter>.m", "step<t>.<parameter>.v"}, t from 1.
    """
    number = arithmetic or Float64()
    weights = {name: number.load(value) for name, value in params.items()}
    m = {name: np.zeros(value.shape) for name, value in weights.items()}
    v = {name: np.zeros(value.shape) for name, value in weights.items()}
    found: dict[str, Any] = {}
    for step in range(1, recipe["num_steps"] + 1):
        first = (step - 1) * recipe["num_microbatches"]
        steps = [
            evaluate(layer, options, weights, _microbatch(batch, first + i), arithmetic, own_loss=True)
            for i in range(recipe["num_microbatches"])
        ]
        found[f"step{step}.loss"] = _mean(number, [one["loss"] for one in steps])
        grads = {name: _mean(number, [one[f"{name}.grad"] for one in steps]) for name in weights}
        found[f"step{step}.norm"] = norm = np.sqrt(sum(np.sum(np.square(grad)) for grad in grads.values()))
        scale = np.minimum(recipe["max_norm"] / (norm + 1e-6), 1.0)
        for name, grad in grads.items():
            moved = adamw(number, weights[name], m[name], v[name], grad * scale, step, recipe)
            weights[name], m[name], v[name] = moved
            if step % recipe["record_every"] == 0:
                found |= {f"step{step}.{name}{end}": value for end, value in zip(("", ".m", ".v"), moved, strict=True)}
    return {name: np.array(value, np.float64) for name, value in found.items()}


def adamw(
    number: Arithmetic, p: np.ndarray, m: np.ndarray, v: np.ndarray, g: np.ndarray, step: int, recipe: Recipe
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(p, m, v) after step number `step` with the gradient g.

    m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, p = p (1 - lr decay) - lr m' / (sqrt(v') + eps), with
    m' = m / (1 - b1^t), v' = v / (1 - b2^t).
    """
    b1, b2, rate = recipe["b1"], recipe["b2"], learning_rate(number, step, recipe)
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * np.square(g)
    root = np.sqrt(v) / np.sqrt(1 - b2**step) + recipe["eps"]
    p = p * (1 - rate * recipe["weight_decay"]) - rate / (1 - b1**step) * (m / root)
    return p, m, v


def learning_rate(number: Arithmetic, step: int, recipe: Recipe) -> np.ndarray:
    """peak t / W up to t = W, then end + (peak - end) (1 + cos(pi (t - W) / (N - W))) / 2."""
    steps, warmup = recipe["num_steps"], recipe["warmup_steps"]
    peak, end = number.load(np.array(recipe["peak_rate"])), recipe["end_rate"]
    if step <= warmup:
        return np.asanyarray(peak * step / warmup)
    progress = number.load(np.array((step - warmup) / (steps - warmup)))
    return np.asanyarray(end + (peak - end) * 0.5 * (1.0 + np.cos(np.pi * progress)))


def _microbatch(batch: Arrays, i: int) -> dict[str, np.ndarray]:
    prefix = f"batch{i}."
    return {name.removeprefix(prefix): array for name, array in batch.items() if name.startswith(prefix)}


def _mean(number: Arithmetic, values: Sequence[np.ndarray]) -> np.ndarray:
    total = number.load(values[0])
    for value in values[1:]:
        total = total + number.load(value)
    return total / len(values)
