"""Rotary position embedding: pairs of a head's features are rotated by an angle proportional to the position.

    S sequence   E features per head

    angle_SE/2   = position x theta^(-2 i / E)
    y_i          = x_i cos - x_(i + E/2) sin          the half convention: feature i is paired with i + E/2
    y_(i + E/2)  = x_(i + E/2) cos + x_i sin

Meta's Llama checkpoints pair 2 i with 2 i + 1 (interleaved); Hugging Face's are permuted to the half convention. Both
give the same scores if the columns of w_q and w_k are permuted to match: `half_from_interleaved` and its inverse.

Source: RoFormer, https://arxiv.org/abs/2104.09864, section 3.4.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache  # shared by all blocks of a model
def rotations(S: int, E: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of the angles, float64 [S, E/2]. Raises ValueError for an odd E."""
    if E % 2:
        raise ValueError(f"head size E={E}: RoPE turns pairs of features, so E must be even, e.g. {E + 1}")
    angle = np.arange(S)[:, None] * theta ** (-2.0 * np.arange(E // 2) / E)
    return np.cos(angle), np.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x [..., S, E] rotated by the angles [S, E/2]; computed in the dtype of the angles, returned in that of x."""
    left, right = jnp.split(x.astype(cos.dtype), 2, -1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1).astype(x.dtype)


def half_from_interleaved(w: jax.Array, num_heads: int) -> jax.Array:
    """The output features of w_q, w_k [..., H*E] or a bias [H*E], reordered from (2 i, 2 i + 1) to (i, i + E/2)."""
    return w.reshape(*w.shape[:-1], num_heads, -1, 2).swapaxes(-1, -2).reshape(w.shape)


def interleaved_from_half(w: jax.Array, num_heads: int) -> jax.Array:
    """The inverse of `half_from_interleaved`."""
    return w.reshape(*w.shape[:-1], num_heads, 2, -1).swapaxes(-1, -2).reshape(w.shape)
