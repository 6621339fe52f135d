"""One layer of a transformer on the grid: attention and an MLP, each with a norm and a residual, all in 2D.

    pre-norm (GPT, ViT, Llama)    h = x + attention(norm1(x));   y = h + mlp(norm2(h))
    post-norm (BERT)              h = norm1(x + attention(x));   y = norm2(h + mlp(h))

    B batch   S sequence   D features   F hidden   H heads of E features, K key heads   X by Y devices on "x" and "y"

    x_BSD per device   [B/X, S, D/Y]     no device ever holds all features of a token, or all tokens of a feature
    y_BSD per device   [B/X, S, D/Y]

The collectives are those of its layers: norm.py twice, and four products (matmul.py) of B S rows,

    D to (H + 2 K) E,   H E to D,   D to F (gated: 2 F),   F to D,        with the gradients of their biases.

With multi-head attention, F = 4 D, and q by q devices SUMMA's payload forward is B S/q (D + D + D + 4 D) of activations
and D/q (3 D + D + 4 D + 4 D) of weights: (7 B S D + 12 D²)/q, compared with 2 B S D in the 1D block, whatever q. In the
backward pass it is twice that.

Sources: Optimus, https://arxiv.org/abs/2104.05343, and those of block.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from torch_tp import block
from torch_tp.grid import attention, mlp, norm
from torch_tp.layouts import Plan

NORM = norm.PLANS["grid"]

PLANS = {
    algorithm: Plan(
        x=NORM.x,
        y=NORM.y,
        children={
            "norm1": NORM,
            "attention": attention.PLANS[algorithm],
            "norm2": NORM,
            "mlp": mlp.PLANS[algorithm],
            "swiglu": mlp.PLANS[algorithm],
        },
        algorithm=algorithm,
    )
    for algorithm in mlp.PLANS
}


class GridBlock(block.Block):
    """The 1D block with the grid's sublayers; everything between them is elementwise."""

    layers: ClassVar[Mapping[str, ModuleType]] = {"norm": norm, "attention": attention, "mlp": mlp, "swiglu": mlp}


STYLES = {"manual": GridBlock}


def build(mesh: DeviceMesh, style: str, plan: Plan, state: Mapping[str, np.ndarray], **options: Any) -> nn.Module:
    """The block; `state` and options: those of `block.build`. Raises ValueError as `attention.build` does."""
    return STYLES[style](mesh, style, plan, state, **options)
