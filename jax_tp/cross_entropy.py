"""Vocab-parallel cross entropy without gathering the logits: the mean over tokens of -log softmax(x)[label].

    B batch   S sequence   V logits   N ids, N <= V   tp devices on the axis "tp"

    x_BSV per device       [B, S, V/tp]   logits
    labels_BS per device   [B, S]         int64: no gradient
    y                      []             float32 for bfloat16 logits, as are all intermediate values

    z = x - m              m = max_v x, which needs no gradient: y does not depend on m
    loss_BS                log Σ_v exp(z_v) - Σ_v w_v z_v,    w = (1 - e) [v = label] + e / N   with smoothing e
    y                      Σ loss / number of labels, over the tokens whose label is not `ignore_index`
    forward                all-reduce max m_BS, all-reduce Σ exp_BS, all-reduce Σ w z_BS
    backward               no collective: dx = (softmax(x) - w) dy / number of labels, for this device's logits

The logits from N on belong to the rows that pad the vocabulary and are left out of every sum.

Sources: Megatron-LM, https://arxiv.org/abs/1909.08053, section 3; label smoothing: https://arxiv.org/abs/1512.00567.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import axis_index, stop_gradient, with_sharding_constraint
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import map_shards, max_over_tp, reduce_from_tp
from jax_tp.embedding import check_ids
from jax_tp.layouts import Plan, State

PLANS = {
    "vocab_parallel": Plan(x=P(None, None, "tp"), y=P(), inputs={"labels": P(None, None)}),
}

IGNORED = -100  # the default label of tokens that do not count


def check_inputs(
    inputs: Mapping[str, np.ndarray], num_ids: int, ignore_index: int = IGNORED, label_smoothing: float = 0.0
) -> None:
    """Raises ValueError for labels outside the vocabulary or if all are ignored; runs before they are placed."""
    labels = inputs["labels"]
    check_ids("labels", labels, num_ids, ignore_index)
    if np.all(labels == ignore_index):
        raise ValueError(f"labels: all {labels.size} are {ignore_index} (ignored); the mean needs at least one")


class CrossEntropy(nnx.Module):
    """The options of the layer, which has no parameters."""

    def __init__(self, mesh: Mesh, plan: Plan, num_ids: int, ignore_index: int, label_smoothing: float) -> None:
        self.plan = plan
        self.num_ids, self.ignore_index, self.label_smoothing = num_ids, ignore_index, label_smoothing

    def mean(self, loss_BS: jax.Array, labels_BS: jax.Array) -> jax.Array:
        """The mean over the tokens whose label is not ignored."""
        counts = labels_BS != self.ignore_index
        return jnp.where(counts, loss_BS, 0).sum() / counts.sum(dtype=loss_BS.dtype)


# --------------------------------------------------------------------------------------------------------- typed


class TypedCrossEntropy(CrossEntropy):
    """A max or a sum over sharded logits is an all-reduce; no annotation is needed."""

    def __call__(self, x_BSV: jax.Array, labels_BS: jax.Array) -> jax.Array:
        x_BSV = x_BSV.astype(jnp.promote_types(x_BSV.dtype, jnp.float32))
        ids_V = jnp.arange(x_BSV.shape[-1])
        is_id = ids_V < self.num_ids
        m_BS1 = jnp.where(is_id, stop_gradient(x_BSV), -jnp.inf).max(-1, keepdims=True)
        z_BSV = jnp.where(is_id, x_BSV - m_BS1, -jnp.inf)
        log_sum_BS = jnp.log(jnp.exp(z_BSV).sum(-1))
        # A masked sum: XLA could also look the label up, but the type of a lookup in sharded logits is ambiguous.
        part_BSV = jnp.where(ids_V == labels_BS[..., None], (1 - self.label_smoothing) * z_BSV, 0)
        if self.label_smoothing:
            part_BSV = part_BSV + jnp.where(is_id, self.label_smoothing / self.num_ids * z_BSV, 0)
        loss_BS = log_sum_BS - part_BSV.sum(-1)
        return self.mean(loss_BS, labels_BS)


# ---------------------------------------------------------------------------------------------------------- auto


class AutoCrossEntropy(TypedCrossEntropy):
    """The same formula; the compiler sees sums over sharded logits and inserts the all-reduces."""

    def __call__(self, x_BSV: jax.Array, labels_BS: jax.Array) -> jax.Array:
        return super().__call__(with_sharding_constraint(x_BSV, self.plan.x), labels_BS)


# -------------------------------------------------------------------------------------------------------- manual


def token_losses(x: jax.Array, labels: jax.Array, axis: str, num_ids: int, label_smoothing: float) -> jax.Array:
    """The loss of every token, from this device's logits; replicated: [B, S, V/tp], [B, S] -> [B, S]."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # [B, S, V/tp]
    num_own = x.shape[-1]
    ids = axis_index(axis) * num_own + jnp.arange(num_own)
    is_id = ids < num_ids
    m = max_over_tp(jnp.where(is_id, stop_gradient(x), -jnp.inf).max(-1), axis)  # [B, S]
    z = jnp.where(is_id, x - m[..., None], -jnp.inf)
    log_sum = jnp.log(reduce_from_tp(jnp.exp(z).sum(-1), axis))  # [B, S]
    part = jnp.where(ids == labels[..., None], (1 - label_smoothing) * z, 0)
    if label_smoothing:
        part = part + jnp.where(is_id, label_smoothing / num_ids * z, 0)
    return log_sum - reduce_from_tp(part.sum(-1), axis)


class ManualCrossEntropy(CrossEntropy):
    """`body` is the per-device code, on this device's logits."""

    def __call__(self, x_BSV: jax.Array, labels_BS: jax.Array) -> jax.Array:
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, self.plan.inputs["labels"]),
            out_specs=self.plan.y,
        )
        return per_device(x_BSV, labels_BS)

    def body(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        loss = token_losses(x, labels, "tp", self.num_ids, self.label_smoothing)
        return self.mean(loss, labels)


STYLES = {"auto": AutoCrossEntropy, "typed": TypedCrossEntropy, "manual": ManualCrossEntropy}


def check_smoothing(label_smoothing: float) -> None:
    """Raises ValueError for a label smoothing outside [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: expected 0 <= label_smoothing < 1")


def build(
    mesh: Mesh,
    style: str,
    plan: Plan,
    state: State,
    num_ids: int,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
) -> nnx.Module:
    """The layer in one of the three styles; `state` is empty. The logits from num_ids on are padding.

    Raises ValueError for a label smoothing outside [0, 1).
    """
    check_smoothing(label_smoothing)
    return STYLES[style](mesh, plan, num_ids, ignore_index, label_smoothing)
