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

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import local_map
from torch.nn.functional import cross_entropy

from torch_tp.collectives import max_over_tp, reduce_from_tp
from torch_tp.embedding import check_ids
from torch_tp.layouts import Plan

PLANS = {
    "vocab_parallel": Plan(x=Shard(2), y=Replicate(), inputs={"labels": Replicate()}),
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


class CrossEntropy(nn.Module):
    """The options of the layer, which has no parameters."""

    def __init__(self, mesh: DeviceMesh, plan: Plan, num_ids: int, ignore_index: int, label_smoothing: float) -> None:
        super().__init__()
        self.axis, self.plan = mesh, plan
        self.num_ids, self.ignore_index, self.label_smoothing = num_ids, ignore_index, label_smoothing

    def mean(self, loss_BS: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
        """The mean over the tokens whose label is not ignored."""
        counts = labels_BS != self.ignore_index
        return torch.where(counts, loss_BS, 0).sum() / counts.sum()


# --------------------------------------------------------------------------------------------------------- typed


class TypedCrossEntropy(CrossEntropy):
    """A max or a sum over sharded logits has a Partial() placement, which `redistribute` reduces."""

    def forward(self, x_BSV: DTensor, labels_BS: DTensor) -> DTensor:
        whole = [Replicate()]
        x_BSV = x_BSV.to(torch.promote_types(x_BSV.dtype, torch.float32))
        ids_V = number_logits(x_BSV)
        is_id = ids_V < self.num_ids
        m_BS1 = torch.where(is_id, x_BSV.detach(), -torch.inf).amax(-1, keepdim=True).redistribute(placements=whole)
        z_BSV = torch.where(is_id, x_BSV - m_BS1, -torch.inf)
        log_sum_BS = z_BSV.exp().sum(-1).redistribute(placements=whole).log()
        part_BSV = torch.where(ids_V == labels_BS[..., None], (1 - self.label_smoothing) * z_BSV, 0)
        if self.label_smoothing:
            part_BSV = part_BSV + torch.where(is_id, self.label_smoothing / self.num_ids * z_BSV, 0)
        loss_BS = log_sum_BS - part_BSV.sum(-1).redistribute(placements=whole)
        return self.mean(loss_BS, labels_BS)


def number_logits(x_BSV: DTensor) -> DTensor:
    """0 .. V-1, sharded as the logits are."""
    numbers = torch.arange(x_BSV.shape[-1], device=x_BSV.device)
    return distribute_tensor(numbers, x_BSV.device_mesh, [Shard(0)], src_data_rank=None)


# ---------------------------------------------------------------------------------------------------------- auto


class AutoCrossEntropy(TypedCrossEntropy):
    """PyTorch's own function on sharded logits, as the step runs inside `loss_parallel()`: see train.py.

    That context does not support label smoothing: its backward assumes that log softmax is only used in a lookup.
    """

    def forward(self, x_BSV: DTensor, labels_BS: DTensor) -> DTensor:
        if self.label_smoothing:
            return super().forward(x_BSV, labels_BS)
        x_BSV = x_BSV.to(torch.promote_types(x_BSV.dtype, torch.float32))
        x_BSV = torch.where(number_logits(x_BSV) < self.num_ids, x_BSV, -torch.inf)
        return cross_entropy(x_BSV.flatten(0, 1), labels_BS.flatten(), ignore_index=self.ignore_index)


# -------------------------------------------------------------------------------------------------------- manual


def token_losses(
    x: torch.Tensor, labels: torch.Tensor, axis: DeviceMesh, num_ids: int, label_smoothing: float
) -> torch.Tensor:
    """The loss of every token, from this device's logits; replicated: [B, S, V/tp], [B, S] -> [B, S]."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # [B, S, V/tp]
    num_own = x.shape[-1]
    ids = axis.get_local_rank() * num_own + torch.arange(num_own, device=x.device)
    is_id = ids < num_ids
    m = max_over_tp(torch.where(is_id, x.detach(), -torch.inf).amax(-1), axis)  # [B, S]
    z = torch.where(is_id, x - m[..., None], -torch.inf)
    log_sum = reduce_from_tp(z.exp().sum(-1), axis).log()  # [B, S]
    part = torch.where(ids == labels[..., None], (1 - label_smoothing) * z, 0)
    if label_smoothing:
        part = part + torch.where(is_id, label_smoothing / num_ids * z, 0)
    return log_sum - reduce_from_tp(part.sum(-1), axis)


class ManualCrossEntropy(CrossEntropy):
    """`body` is the per-device code, on this device's logits."""

    def forward(self, x_BSV: DTensor, labels_BS: DTensor) -> DTensor:
        per_device = local_map(
            self.body,
            in_placements=([self.plan.x], [self.plan.inputs["labels"]]),
            out_placements=[self.plan.y],
            device_mesh=self.axis,
        )
        return per_device(x_BSV, labels_BS)

    def body(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = token_losses(x, labels, self.axis, self.num_ids, self.label_smoothing)
        return self.mean(loss, labels)


STYLES = {"auto": AutoCrossEntropy, "typed": TypedCrossEntropy, "manual": ManualCrossEntropy}


def check_smoothing(label_smoothing: float) -> None:
    """Raises ValueError for a label smoothing outside [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: expected 0 <= label_smoothing < 1")


def build(
    mesh: DeviceMesh,
    style: str,
    plan: Plan,
    state: Mapping[str, np.ndarray],
    num_ids: int,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
) -> nn.Module:
    """The layer in one of the three styles; `state` is empty. The logits from num_ids on are padding.

    Raises ValueError for a label smoothing outside [0, 1).
    """
    check_smoothing(label_smoothing)
    return STYLES[style](mesh, plan, num_ids, ignore_index, label_smoothing)
