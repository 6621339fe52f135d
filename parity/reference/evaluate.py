"""Runs a formula forward and backward, in float64 or in another arithmetic."""

from __future__ import annotations

from typing import Any, Protocol

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad
from autograd.differential_operators import make_vjp

from parity.reference.attention import attention, fused_attention
from parity.reference.block import block, child, feed_forward
from parity.reference.cross_entropy import cross_entropy
from parity.reference.dropout import dropout
from parity.reference.embedding import embedding
from parity.reference.formula import Arrays, Formula, Options
from parity.reference.linear import linear
from parity.reference.mlp import mlp
from parity.reference.models import bert, gpt, llama
from parity.reference.norm import norm
from parity.reference.swiglu import swiglu
from parity.reference.tied import tied
from parity.reference.vit import vit


def inner(formula: Formula) -> Formula:
    """The formula of a layer whose parameters stand under "inner": how the batch is shared out changes nothing."""
    return lambda params, batch, options: formula(child(params, "inner"), batch, options)


LAYERS: dict[str, Formula] = {
    "attention": attention,
    "fused_attention": fused_attention,
    "replicated_kv": attention,
    "linear": linear,
    "grid.attention": attention,
    "grid.block": block,
    "grid.cross_entropy": cross_entropy,
    "grid.embedding": embedding,
    "grid.linear": linear,
    "grid.matmul": linear,
    "grid.mlp": feed_forward,
    "grid.models.gpt": gpt,
    "grid.models.vit": vit,
    "grid.norm": norm,
    "grid.tied": tied,
    "mlp": mlp,
    "norm": norm,
    "swiglu": swiglu,
    "dropout": dropout,
    "embedding": embedding,
    "cross_entropy": cross_entropy,
    "block": block,
    "tied": tied,
    "hybrid.block": inner(block),
    "hybrid.grid.block": inner(block),
    "hybrid.grid.models.gpt": inner(gpt),
    "hybrid.models.gpt": inner(gpt),
    "hybrid.models.llama": inner(llama),
    "hybrid.models.vit": inner(vit),
    "models.bert": bert,
    "models.gpt": gpt,
    "models.llama": llama,
    "models.vit": vit,
}

# Inputs that are numbers but data, like ids: no gradient is taken.
CONSTANTS: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("models.vit", "grid.models.vit", "hybrid.models.vit"), ("truth",)
)


class Arithmetic(Protocol):
    """How numbers are stored and computed with while a formula runs."""

    def load(self, array: np.ndarray) -> np.ndarray:
        """An input array, exactly as stored."""

    def widen(self, y: np.ndarray) -> np.ndarray:
        """The output, in the precision of the loss (float32 for a bfloat16 output)."""

    def store(self, dy: np.ndarray) -> np.ndarray:
        """The gradient of the loss, back in the precision of the output."""


class Float64:
    """The oracle's arithmetic: plain NumPy float64."""

    def load(self, array: np.ndarray) -> np.ndarray:
        return np.asarray(array, np.float64)

    def widen(self, y: np.ndarray) -> np.ndarray:
        return y

    def store(self, dy: np.ndarray) -> np.ndarray:
        return dy


def squared_error(y: Any, target: Any) -> Any:
    """sum (y - target)^2 / 2."""
    return 0.5 * anp.sum(anp.square(y - target))


def _is_fixed(array: np.ndarray) -> bool:
    """Integers (ids, masks) are inputs without a gradient and without rounding."""
    return bool(np.issubdtype(array.dtype, np.integer))


def output(name: str, options: Options, params: Arrays, batch: Arrays) -> np.ndarray:
    """y of a layer in float64."""
    inputs = {key: value if _is_fixed(value) else np.asarray(value, np.float64) for key, value in batch.items()}
    wide = {key: np.asarray(value, np.float64) for key, value in params.items()}
    y: np.ndarray = LAYERS[name](wide, inputs, options)
    return y


def evaluate(
    name: str,
    options: Options,
    params: Arrays,
    batch: Arrays,
    arithmetic: Arithmetic | None = None,
    own_loss: bool = False,
) -> dict[str, np.ndarray]:
    """One step of a layer: output, squared-error loss and gradients, by default in float64.

    own_loss: y, where it is a scalar, is the loss, as in training.

    `batch` holds "x" and "target"; integer arrays in it (ids, masks) and CONSTANTS are inputs without a gradient.
    Returns float64 arrays {"y", "loss", "<name>.grad" for x and each parameter}.
    Raises KeyError for a layer or activation that is not registered.
    """
    number = arithmetic or Float64()
    formula = LAYERS[name]
    inputs = {key: value for key, value in batch.items() if key != "target"}
    fixed = {key: value for key, value in inputs.items() if _is_fixed(value)}
    fixed |= {key: number.load(inputs[key]) for key in CONSTANTS.get(name, ()) if key in inputs}
    leaves = {key: number.load(value) for key, value in {**inputs, **params}.items() if key not in fixed}

    def forward(leaves: Arrays) -> Any:
        own = {key: leaves[key] for key in params}
        return formula(own, {key: fixed[key] if key in fixed else leaves[key] for key in inputs}, options)

    backward, y = make_vjp(forward)(leaves)
    if own_loss and np.ndim(y) == 0:
        loss, dy = y, number.load(np.ones(()))
    else:
        loss, dy = value_and_grad(squared_error)(number.widen(y), np.asarray(batch["target"], np.float64))
    grads = backward(getattr(y, "rules", number).store(dy))  # y may be wider than the inputs
    named = {"y": y, "loss": loss, **{f"{key}.grad": grads[key] for key in leaves}}
    return {key: np.array(value, np.float64) for key, value in named.items()}
