"""Lesson 3, 2D tensor parallelism: a weight that is split along both dims over a grid of 2 x 2 devices.

    torchrun --nproc-per-node 4 -m torch_tp.examples.e03_grid        (or mpiexec, or plain python: common.py)

The layers are in torch_tp/grid/. Block (i, j) of a matrix on device (x=i, y=j) is `(Shard(0), Shard(1))` on the mesh
("x", "y"), and (Shard(1), Shard(0)) for PyTorch's transposed weight.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.distributed.device_mesh import DeviceMesh

from torch_tp import hybrid, linear
from torch_tp.examples.common import by_name, check, normal, run, run_step, say, show_calls, show_shards, whole
from torch_tp.grid import matmul
from torch_tp.layouts import place
from torch_tp.mesh import make_mesh
from torch_tp.trace import RecordCollectives

M, K, N, PANEL = 8, 12, 16, 3
ALGORITHMS = {
    "summa": f"panels of {PANEL} of the {K} k, one after the other: who has it broadcasts that of x along y, that of\n"
    "w along x. What is in memory beside the blocks does not grow with the grid.",
    "cannon": "the blocks go round in rings, those of x along y, those of w along x, until each device has met all\n"
    "that it needs. Square grids only.",
    "gathered": "first collect the whole row of blocks of x and column of blocks of w, then one product. Fewer\n"
    "messages, the same bytes; but what is in memory grows with the grid.",
    "stationary": "the weight stays. The x that it multiplies is collected, the parts of y are summed and\n"
    "scattered. Good where there are fewer tokens than features.",
}


def forward_of_partitioner(mesh: DeviceMesh, state: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Shows what DTensor inserts when it is told the layouts only; y."""
    plan = matmul.PLANS["partitioner"]
    module = matmul.build(mesh, "auto", plan, state)
    with RecordCollectives(mesh) as record, torch.no_grad():
        y = module(place(x, mesh, plan.x))
    show_calls(record.calls)
    return whole(y)


def lesson(device: str) -> None:
    """Y = X W by SUMMA, Cannon, gathered, stationary and the partitioner; and dp x tp, which is something else."""
    mesh = make_mesh({"x": 2, "y": 2}, device)
    state, data = normal(0, w=(K, N)), normal(1, x=(M, K), target=(M, N))
    y = data["x"] @ state["w"]
    dy = y - data["target"]
    want = {"y": y, "x.grad": dy @ state["w"].T, "w.grad": data["x"].T @ dy}

    say("Lesson 3: Y = X W, all three split along both dims over a grid of devices, x=2 by y=2.", "")
    say("Device (x=i, y=j) holds block (i, j) of each matrix: a quarter of the weight, of the input, of the output.")
    module = matmul.build(mesh, "manual", matmul.PLANS["summa"], state, panel=PANEL)
    show_shards("w", by_name(state, dict(module.named_parameters()))["w"], mesh)
    say("", "Y_ij = sum over k of X_ik W_kj: a device needs blocks that it does not have, of X those of its row of the")
    say("grid, of W those of its column. The algorithms differ in how it gets them, forward and backward, where")
    say("dX = dY W^T and dW = X^T dY.")
    for name, explanation in ALGORITHMS.items():
        say("", f"{name}: {explanation}")
        plan, options = matmul.PLANS[name], {"panel": PANEL} if name == "summa" else {}
        module = matmul.build(mesh, "manual", plan, state, **options)
        step = run_step(module, mesh, plan, data["x"], data["target"])
        got = {"y": step.y, "x.grad": step.input_grads["x"], "w.grad": by_name(state, step.param_grads)["w"]}
        check({key: whole(tensor) for key, tensor in got.items()}, want)

    say("", "partitioner: tell the framework the layouts of x, w and y, and let it choose. Forward it collects whole")
    say("rows and columns, as `gathered` does; neither framework comes up with SUMMA or Cannon:")
    check({"y": forward_of_partitioner(mesh, state, data["x"])}, {"y": y})

    say("", "Beware: what tutorials call 2D is mostly dp x tp. Then one axis splits the batch, and the weight is split")
    say("along one dim only: half of it is on each device, not a quarter, and its gradient is summed over dp.")
    mesh = make_mesh({"dp": 2, "tp": 2}, device)
    layer = hybrid.over(linear, "column_parallel")
    plan, inner = layer.PLANS["dp"], {"inner.w": state["w"]}
    module = layer.build(mesh, "manual", plan, inner)
    show_shards("w", by_name(inner, dict(module.named_parameters()))["inner.w"], mesh)
    step = run_step(module, mesh, plan, data["x"][:, None], data["target"][:, None])
    got = {"y": step.y, "x.grad": step.input_grads["x"], "w.grad": by_name(inner, step.param_grads)["inner.w"]}
    check(
        {key: whole(tensor) for key, tensor in got.items()},
        {**want, "y": y[:, None], "x.grad": want["x.grad"][:, None]},
    )

    say("", "All of them give the same numbers:")
    for name, value in want.items():
        say(f"    norm of {name:6} {list(value.shape)!s:9} {np.linalg.norm(value):.8f}")


if __name__ == "__main__":
    run(lesson)
