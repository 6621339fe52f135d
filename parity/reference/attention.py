"""Attention."""

from __future__ import annotations

from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, primitive
from autograd.tracer import getval

from parity.arithmetic import ModelArray
from parity.reference.dropout import drop
from parity.reference.formula import Arrays, Options
from parity.reference.linear import affine
from parity.reference.precision import narrow, widen


@primitive  # type: ignore[untyped-decorator]
def softmax(scores: Any, seen: np.ndarray) -> Any:
    """exp(s) / sum exp(s) over the last dim, of what is seen; 0 elsewhere. Frameworks subtract the maximum first."""
    largest = np.where(seen, np.asarray(scores), -np.inf).max(-1, keepdims=True)
    powers = np.where(seen, np.exp(np.where(seen, scores - largest, 0.0)), 0.0)
    return powers / np.sum(powers, axis=-1, keepdims=True)


# As the frameworks write it: one subtraction, which cancels where a weight is near 1.
defvjp(softmax, lambda p, scores, seen: lambda g: p * (g - anp.sum(p * g, axis=-1, keepdims=True)))


@primitive  # type: ignore[untyped-decorator]
def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """Feature i of the E of a head and i + E/2 as a vector, turned by the angle of the position."""
    left, right = np.split(x, 2, axis=-1)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


defvjp(rotate, lambda ans, x, cos, sin: lambda g: rotate(g, cos, -sin), argnums=(0,))


def rotations(x: Any, S: int, E: int, theta: float) -> tuple[Any, Any]:
    """cos and sin of position * theta^(-2 i / E), [S, E/2], as x is stored."""
    angle = np.arange(S)[:, None] * theta ** (-2.0 * np.arange(E // 2) / E)
    like = getval(x)
    tables = np.cos(angle), np.sin(angle)
    cos, sin = (like.rules.constant(table) if isinstance(like, ModelArray) else table for table in tables)
    return cos, sin


def attend(q: Any, k: Any, v: Any, E: int, options: Options, step: Any = None) -> Any:
    """softmax(q k^T / sqrt E) v; q [B, S, H*E], k and v [B, S, K*E]; query head h reads key head h // (H/K).

    With a `step` the probabilities [K, B, G, S, T] are dropped out. `causal`: a query sees no later key.
    `rope_theta`: base of the rotary embedding, or None for none.
    """
    B, S, _ = q.shape
    K, G = k.shape[2] // E, q.shape[2] // k.shape[2]
    q = anp.transpose(anp.reshape(q, (B, S, K, G, E)), (2, 0, 3, 1, 4))
    k, v = (anp.transpose(anp.reshape(array, (B, S, K, E)), (2, 0, 1, 3)) for array in (k, v))
    if options["rope_theta"] is not None:
        wide_q, wide_k = widen(q), widen(k)
        cos, sin = rotations(wide_q, S, E, options["rope_theta"])
        q, k = narrow(rotate(wide_q, cos, sin), q), narrow(rotate(wide_k, cos, sin), k)
    scores = anp.matmul(anp.reshape(q, (K, B, G * S, E)), anp.swapaxes(k, -1, -2))
    seen = np.tile(np.tri(S, dtype=np.bool_) if options["causal"] else np.ones((S, S), np.bool_), (G, 1))
    weights = softmax(widen(scores) * E**-0.5, seen)
    if step is not None:
        by_head = anp.reshape(weights, (K, B, G, S, S))
        dropped = drop(by_head, options["drop_rate"], options["seed"], options["layer"], step)
        weights = anp.reshape(dropped, (K, B, G * S, S))
    y = anp.matmul(narrow(weights, v), v)
    return anp.reshape(anp.transpose(anp.reshape(y, (K, B, G, S, E)), (1, 3, 0, 2, 4)), (B, S, K * G * E))


def split_qkv(params: Arrays, x: Any, options: Options) -> tuple[Any, Any, Any]:
    """q, k, v of a fused weight: [D, 3, H*E] as it is in memory, or [D, K*(G+2)*E] with q, k, v together for each K."""
    w = params["qkv.w"]
    flat = {"w": anp.reshape(w, (w.shape[0], -1))}
    if "qkv.b" in params:
        flat["b"] = anp.reshape(params["qkv.b"], -1)
    qkv = affine(x, flat)
    if w.ndim == 3:
        q, k, v = anp.split(qkv, 3, axis=2)
        return q, k, v
    B, S, _ = x.shape
    K, G = options["num_kv_heads"], options["num_heads"] // options["num_kv_heads"]
    parts = anp.split(anp.reshape(qkv, (B, S, K, G + 2, -1)), [G, G + 1], axis=3)
    q, k, v = (anp.reshape(part, (B, S, -1)) for part in parts)
    return q, k, v


def fused_attention(params: Arrays, batch: Arrays, options: Options) -> Any:
    """As `attention`, with q, k and v in one weight."""
    q, k, v = split_qkv(params, batch["x"], options)
    return affine(attend(q, k, v, q.shape[2] // options["num_heads"], options), params, "o.")


def attention(params: Arrays, batch: Arrays, options: Options) -> Any:
    """y = attend(x w_q, x w_k, x w_v) w_o, each with its bias if it has one; y is [B, S, D]."""
    q, k, v = (affine(batch["x"], params, f"{name}.") for name in "qkv")
    y = attend(q, k, v, q.shape[2] // options["num_heads"], options, batch.get("step"))
    return affine(y, params, "o.")
