"""The torch side of sharded_worker.py: 4 processes, whose mesh (dp, tp) has every tp degree that divides 4."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from torch_tp import mesh
from torch_tp.layers import LAYERS
from torch_tp.layouts import canonical, child, native_name, to_numpy
from torch_tp.tasks import place_batch
from torch_tp.train import loss_and_gradients

leave = mesh.leave


def join() -> None:
    mesh.join("cpu")


class Logits(torch.nn.Module):
    """In the place of a model's loss: what it is given."""

    def forward(self, logits: DTensor, labels: DTensor) -> DTensor:
        return logits


def gather(
    model: str, options: dict[str, Any], plan: str, style: str, tp: int, arrays: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Logits, loss, and the gradient of every parameter, whole."""
    axes = mesh.make_mesh({"dp": 4 // tp, "tp": tp}, "cpu")["tp"]
    layer, params = LAYERS[model], child(arrays, "params")
    module = layer.build(axes, style, layer.PLANS[plan], params, **options)
    batch, target = place_batch(arrays, axes, layer.PLANS[plan])
    done = loss_and_gradients(module, batch, target)
    # safetensors gives names in any order; to gather is a collective.
    found = {
        f"{name}.grad": canonical(name, done.param_grads[native_name(name)].full_tensor()) for name in sorted(params)
    }
    module.loss = Logits()
    found |= {"y": done.y.full_tensor(), "logits": module(*batch.values()).full_tensor()}
    return {name: to_numpy(tensor) for name, tensor in found.items()}
