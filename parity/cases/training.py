"""Training as case data: the hyperparameters, and what a step sends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from parity.cases.notation import Expected, parse_layout

RECIPE: Mapping[str, Any] = {
    "num_steps": 10,
    "num_microbatches": 2,
    "peak_rate": 1e-2,
    "end_rate": 1e-3,
    "warmup_steps": 3,
    "b1": 0.9,
    "b2": 0.99,
    # Far above the rounding errors of the gradients. With 1e-8 the first update of a gradient near 0 is its sign, which
    # a rounding error decides, and no error bound can cover that.
    "eps": 1e-6,
    "weight_decay": 0.1,
    "max_norm": 100.0,  # of the MLP; other variants have their own
    "record_every": 1,
}


def training_collectives(
    formulas: Sequence[Expected], layouts: Sequence[str], recipe: Mapping[str, Any], mesh: Iterable[str]
) -> list[Expected]:
    """Those of a layer's step, once a microbatch and without the input's gradient, and those of the optimizer.

    A parameter that only the input's gradient reads is gathered by PyTorch with the others all the same.
    layouts: of the parameters; mesh: its axes, outermost first. Moments and parameters lie alike, so that only the norm
    of the gradient is sent.
    """
    unread = (replace(formula, torch_only=True) for formula in formulas if formula.of_input and formula.param)
    steps = [*(formula for formula in formulas if not formula.of_input), *unread] * recipe["num_microbatches"]
    axes = [{axis for dim in parse_layout(layout) for axis in dim.axes} for layout in layouts]
    sharded = Counter("+".join(name for name in mesh if name in names) for names in axes if names)
    reason = "the squared norm of each sharded gradient sums over its shards; replicated ones are whole"
    return [*steps, *(Expected("all_reduce", names, "optimizer", str(n), reason) for names, n in sharded.items())]
