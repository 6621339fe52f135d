"""Transformer block."""

from __future__ import annotations

from typing import Any

from parity.reference.attention import attention
from parity.reference.dropout import drop
from parity.reference.formula import Arrays, Options
from parity.reference.mlp import mlp
from parity.reference.norm import norm
from parity.reference.swiglu import swiglu


def child(params: Arrays, name: str) -> dict[str, Any]:
    """The parameters of a sublayer, under its own names."""
    return {key.removeprefix(f"{name}."): value for key, value in params.items() if key.startswith(f"{name}.")}


def feed_forward(params: Arrays, batch: Arrays, options: Options) -> Any:
    """The MLP, or the gated one if `activation` is "swiglu"."""
    formula = swiglu if options["activation"] == "swiglu" else mlp
    return formula(params, batch, options)


def block(params: Arrays, batch: Arrays, options: Options) -> Any:
    """h = x + attention(norm1(x)), y = h + mlp(norm2(h)); `is_post_norm`: h = norm1(x + attention(x)), ...

    With a `step` the probabilities of attention and what both sublayers give are dropped out, as in GPT-2: these are
    the layers 3 number, 3 number + 1 and 3 number + 2.
    """
    x, step = batch["x"], {key: batch[key] for key in ("step",) if key in batch}
    first = 3 * options.get("number", 0)

    def normed(name: str, value: Any) -> Any:
        return norm(child(params, name), {"x": value}, {"kind": options["norm_kind"], "eps": options["eps"]})

    def dropped(value: Any, place: int) -> Any:
        return drop(value, options["drop_rate"], options["seed"], first + place, batch["step"]) if step else value

    def attended(value: Any) -> Any:
        return dropped(attention(child(params, "attention"), {"x": value, **step}, {**options, "layer": first}), 1)

    def fed_forward(value: Any) -> Any:
        return dropped(feed_forward(child(params, "mlp"), {"x": value}, options), 2)

    if options.get("is_post_norm", False):
        h = normed("norm1", x + attended(x))
        return normed("norm2", h + fed_forward(h))
    h = x + attended(normed("norm1", x))
    return h + fed_forward(normed("norm2", h))
