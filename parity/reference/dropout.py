"""Dropout by place."""

from __future__ import annotations

from typing import Any

import autograd.numpy as anp
import numpy as np

from parity.reference.formula import Arrays, Options
from parity.reference.precision import narrow, widen

WORD = 0xFFFFFFFF


def threefry(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011), in uint64, masked to words of 32 bits."""
    k0, k1, c0, c1 = (np.asarray(word, np.uint64) for word in (*key, *counter))
    keys = k0, k1, k0 ^ k1 ^ np.uint64(0x1BD11BDA)
    left, right = (c0 + k0) & WORD, (c1 + k1) & WORD
    for i in range(20):
        bits = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        left = (left + right) & WORD
        right = (((right << bits) | (right >> (32 - bits))) & WORD) ^ left
        if i % 4 == 3:
            n = i // 4 + 1
            left, right = (left + keys[n % 3]) & WORD, (right + keys[(n + 1) % 3] + n) & WORD
    return left, right


def kept(shape: tuple[int, ...], rate: float, seed: int, layer: int, step: int) -> np.ndarray:
    """Which elements of a tensor of this shape are kept: a function of their places and of these numbers alone."""
    places = np.arange(np.prod(shape), dtype=np.uint64).reshape(shape)
    key = threefry((seed, layer), (step, 0))
    bits, _ = threefry(key, ((places // shape[-1]) & WORD, places % shape[-1]))
    mask: np.ndarray = bits >= round(rate * 2**32)
    return mask


def drop(x: Any, rate: float, seed: int, layer: int, step: Any) -> Any:
    """x / (1 - rate) where it is kept, else 0; x itself where the rate is 0."""
    if not rate:
        return x
    return narrow(anp.where(kept(x.shape, rate, seed, layer, int(step)), widen(x) * (1 / (1 - rate)), 0.0), x)


def dropout(params: Arrays, batch: Arrays, options: Options) -> Any:
    """y = x / (1 - rate) where an element is kept, else 0; the input `step` is the number of the draw."""
    return drop(batch["x"], options["rate"], options["seed"], options["layer"], batch["step"])
