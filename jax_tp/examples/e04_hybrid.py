"""Lesson 4, fsdp x tp: a transformer block, attention and an MLP, trained on 2 x 2 devices.

    torchrun --nproc-per-node 4 -m jax_tp.examples.e04_hybrid        (or mpiexec, or plain python: common.py)

The block is jax_tp/block.py, tensor-parallel on the axis "tp"; jax_tp/hybrid.py cuts its parameters over "fsdp" too
and gathers them inside `shard_map`; jax_tp/train.py trains it with AdamW. FSDP cuts what tp has cut: that is
`P(None, ("tp", "fsdp"))`, since the first name cuts first.
"""

from __future__ import annotations

from collections.abc import Iterable

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh

from jax_tp import block, hybrid
from jax_tp.examples.common import (
    batch_of,
    by_name,
    check,
    normal,
    run,
    run_step,
    say,
    show_bytes,
    show_shards,
    whole,
)
from jax_tp.layouts import Plan
from jax_tp.mesh import make_mesh
from jax_tp.optimizer import Recipe, make_optimizer, place_optimizer
from jax_tp.train import train_step

B, S, D, H, E, F = 4, 6, 8, 2, 4, 16  # H heads of E features
LLAMA = {"num_heads": H, "num_kv_heads": H, "causal": True, "rope_theta": 1e4}
LLAMA |= {"norm_kind": "rms_norm", "eps": 1e-5, "activation": "swiglu"}
RATES = {"num_steps": 5, "peak_rate": 2e-2, "end_rate": 2e-3, "warmup_steps": 1}
RECIPE = Recipe(**RATES, num_microbatches=1, b1=0.9, b2=0.99, eps=1e-6, weight_decay=0.1, max_norm=100.0)
SHAPES = {"norm1_scale": (D,), "norm2_scale": (D,), "attention_o_w": (H * E, D), "mlp_down_w": (F, D)}
SHAPES |= {f"attention_{name}_w": (D, H * E) for name in "qkv"} | {f"mlp_{name}_w": (D, F) for name in ("up", "gate")}


def train(
    module: nnx.Module, mesh: Mesh, plan: Plan, names: Iterable[str], data: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """AdamW for the steps of the recipe: losses and norms of the gradient, and the parameters after the last step."""
    optimizer = make_optimizer(module, RECIPE)
    place_optimizer(optimizer, module, mesh)
    step = nnx.jit(lambda module, optimizer, batch: train_step(module, optimizer, [batch], RECIPE))
    updates = [step(module, optimizer, batch_of(plan, mesh, **data)) for _ in range(RECIPE.num_steps)]
    params = by_name(names, nnx.state(module, nnx.Param))
    return {
        "losses": np.array([whole(update.loss) for update in updates]),
        "norms": np.array([whole(update.norm) for update in updates]),
        **{name.removeprefix("inner."): whole(param) for name, param in params.items()},
    }


def lesson(device: str) -> None:
    """The block on fsdp x tp: what a device holds, what it sends, and that it learns what one device learns."""
    mesh, layer = make_mesh({"fsdp": 2, "tp": 2}, AxisType.Auto), hybrid.over(block, "megatron")
    jax.set_mesh(mesh)
    plan, state, data = layer.PLANS["fsdp"], normal(0, **SHAPES), normal(1, x=(B, S, D), target=(B, S, D))
    inner = {f"inner.{name}": array for name, array in state.items()}
    module = layer.build(mesh, "manual", plan, inner, **LLAMA)
    params = by_name(inner, nnx.state(module, nnx.Param))

    say("Lesson 4: a block of Llama, y = h + mlp(norm(h)) with h = x + attention(norm(x)), on fsdp=2 x tp=2.", "")
    say("tp splits the heads, and the hidden features of the MLP. fsdp splits the batch; and since all devices")
    say("along fsdp would hold the same weights, each keeps half of its tp shard: a quarter of every matrix.")
    for name in ("attention.q.w", "attention.o.w"):
        show_shards(name, params[f"inner.{name}"], mesh)
    say("(tp cuts first, and fsdp cuts what tp has cut: fsdp=0 and fsdp=1 have neighbouring columns of q.)")
    say("What tp does not split, the scale of a norm, fsdp splits all the same:")
    show_shards("norm1.scale", params["inner.norm1.scale"], mesh)

    matrices = sum(array.size for array in state.values() if array.ndim > 1)
    say(
        "",
        f"What a step sends. Over tp two all-reduces each way of {B // 2} x {S} x {D} numbers, for attention and MLP.",
    )
    say(
        f"Over fsdp all weights as tp shards, {matrices} / 2 + 2 x {D} numbers: gathered before they are used, gathered"
    )
    say("again backward, because they were not kept; and their gradients, summed and scattered.")
    run_step(module, mesh, plan, data["x"], data["target"], show=show_bytes)

    say("", f"{RECIPE.num_steps} steps of AdamW on 2 x 2 devices, against the same block trained on one device:")
    got = train(module, mesh, plan, inner, data)
    one, alone = make_mesh({"tp": 1}, AxisType.Auto, jax.local_devices()[:1]), block.PLANS["megatron"]
    jax.set_mesh(one)
    want = train(block.build(one, "manual", alone, state, **LLAMA), one, alone, state, data)
    for number, (loss, norm) in enumerate(zip(got["losses"], got["norms"], strict=True), 1):
        say(f"    step {number}  loss {loss:12.8f}  norm of the gradient {norm:12.8f}")
    check(got, want)
    for name in state:
        say(f"    norm of {name:13} after training {np.linalg.norm(got[name]):.8f}")


if __name__ == "__main__":
    run(lesson)
