"""GPT on the grid: models/gpt.py built from the grid's layers; no device ever holds a whole residual.

    B batch   S sequence   D features   V rows of the table   C positions   X by Y devices on the axes "x" and "y"

                           summa             stationary
    x_BS per device        [B/X, S]          [B/X, S]           ids
    labels_BS per device   [B/X, S]          [B/Y, S]           int64: no gradient
    table_VD per device    [V/X, D/Y]        [V/X, D/Y]         one parameter of two layers: tied.py
    positions per device   [C, D/Y]          [C, D/Y]
    h_BSD per device       [B/X, S, D/Y]     [B/X, S, D/Y]
    logits per device      [B/X, S, V/Y]     [B/Y, S, V/X]      never gathered
    y                      []                []

The collectives are those of its layers: tied.py, embedding.py (positions), block.py for each block, norm.py, and
cross_entropy.py. A training step adds the norm of the gradients: one number per parameter, over x and y, or over y
alone for those that are replicated over x (of norms, biases, positions).

Sources: Optimus, https://arxiv.org/abs/2104.05343, and those of models/gpt.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from torch_tp.grid import block, cross_entropy, norm, tied
from torch_tp.grid.embedding import POSITIONS, GridPositions
from torch_tp.layouts import Plan
from torch_tp.models import gpt
from torch_tp.models.common import check_inputs

__all__ = ["PLANS", "STYLES", "GridGpt", "build", "check_inputs"]

PLANS = {
    algorithm: Plan(
        x=tied.PLANS[algorithm].x,
        y=loss.y,
        inputs=loss.inputs,
        children={
            "tied": tied.PLANS[algorithm],
            "positions": POSITIONS,
            "block": block.PLANS[algorithm],
            "norm": norm.PLANS["grid"],
            "loss": loss,
        },
        algorithm=algorithm,
    )
    for algorithm, loss in zip(tied.PLANS, cross_entropy.PLANS.values(), strict=True)
}


class GridGpt(gpt.Gpt):
    """The 1D model with the grid's layers."""

    layers: ClassVar[Mapping[str, Any]] = {
        "tied": tied,
        "positions": GridPositions,
        "block": block,
        "norm": norm,
        "loss": cross_entropy,
    }


STYLES = {"manual": GridGpt}


def build(
    mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], num_ids: int, **options: Any
) -> nn.Module:
    """The model; `state` and options: those of `models.gpt.build`. Raises ValueError as the layers' `build` do."""
    return STYLES[style](mesh, style, plan, state, num_ids, options)
