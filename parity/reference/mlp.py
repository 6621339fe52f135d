"""Multi-layer perceptron."""

from __future__ import annotations

from typing import Any

from parity.reference.activations import ACTIVATIONS
from parity.reference.dropout import drop
from parity.reference.formula import Arrays, Options
from parity.reference.linear import affine


def mlp(params: Arrays, batch: Arrays, options: Options) -> Any:
    """y = act(x w_up (+ b_up)) w_down (+ b_down); y is [B, S, D]. `activation` is one of ACTIVATIONS.

    With a `step` the act is dropped out.
    """
    h = ACTIVATIONS[options["activation"]](affine(batch["x"], params, "up."))
    if "step" in batch:
        h = drop(h, options["drop_rate"], options["seed"], options["layer"], batch["step"])
    return affine(h, params, "down.")
