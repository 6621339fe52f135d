"""Cross entropy on the grid without gathering the logits: the mean over tokens of -log softmax(x)[label].

    B batch   S sequence   V logits   N ids, N <= V   X by Y devices on the axes "x" and "y"

                           grid              exchanged
    x_BSV per device       [B/X, S, V/Y]     [B/Y, S, V/X]     logits, as the grid's heads return them
    labels_BS per device   [B/X, S]          [B/Y, S]          int64: no gradient
    y                      []                []                float32 for bfloat16 logits, also in between
    forward                all-reduce y: max, Σ exp and the label's logit of each token, B/X S each;
                           all-reduce x: Σ loss and the number of labels, 2           (exchanged: x for y, y for x)
    backward               no collective

The loss of a token is that of cross_entropy.py over the axis that shards its logits; y is the mean over the tokens of
all devices whose label is not ignored. The logits from N on are padding.

Sources: Optimus, https://arxiv.org/abs/2104.05343; Megatron-LM, https://arxiv.org/abs/1909.08053.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import map_shards, reduce_from_tp
from jax_tp.cross_entropy import IGNORED, CrossEntropy, check_inputs, check_smoothing, token_losses
from jax_tp.grid.linear import BLOCK, EXCHANGED
from jax_tp.grid.product import axes_of
from jax_tp.layouts import Plan, State

__all__ = ["PLANS", "STYLES", "ManualGridCrossEntropy", "build", "check_inputs"]

PLANS = {
    "grid": Plan(x=BLOCK, y=P(), inputs={"labels": P("x", None)}),
    "exchanged": Plan(x=EXCHANGED, y=P(), inputs={"labels": P("y", None)}),
}


# -------------------------------------------------------------------------------------------------------- manual


class ManualGridCrossEntropy(CrossEntropy):
    """The losses of this device's tokens by reductions over one axis, their mean by reductions over the other."""

    def __call__(self, x_BSV: jax.Array, labels_BS: jax.Array) -> jax.Array:
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, self.plan.inputs["labels"]),
            out_specs=self.plan.y,
        )
        return per_device(x_BSV, labels_BS)

    def body(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        rows, columns = axes_of(self.plan.x)
        loss = token_losses(x, labels, columns, self.num_ids, self.label_smoothing)  # [B/X, S]
        counts = labels != self.ignore_index
        sums = jnp.stack([jnp.where(counts, loss, 0).sum(), counts.sum(dtype=loss.dtype)])
        total, number = reduce_from_tp(sums, rows)
        return total / number


STYLES = {"manual": ManualGridCrossEntropy}


def build(
    mesh: Mesh,
    style: str,
    plan: Plan,
    state: State,
    num_ids: int,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
) -> nnx.Module:
    """The layer; `state` is empty. The logits from num_ids on are padding.

    Raises ValueError for a label smoothing outside [0, 1).
    """
    check_smoothing(label_smoothing)
    return STYLES[style](mesh, plan, num_ids, ignore_index, label_smoothing)
