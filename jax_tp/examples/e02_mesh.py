"""Lesson 2, device meshes: axes with names, who is in which group, and a layer that knows one axis only.

    torchrun --nproc-per-node 4 -m jax_tp.examples.e02_mesh        (or mpiexec, or plain python: common.py)

JAX does not slice: the code names an axis, in a PartitionSpec or in `psum(x, "tp")`, and the other axes stay as they
are. A layout has one entry for each dim of its array: `P(None, "tp")` on a mesh of "fsdp" and "tp".
"""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jax_tp import linear
from jax_tp.collectives import reduce_from_tp
from jax_tp.examples.common import by_name, check, normal, run, run_step, say, show_shards, whole
from jax_tp.layouts import place
from jax_tp.mesh import make_mesh

AXES = {"fsdp": 2, "tp": 2}
LAYOUTS = {
    "on every device": P(None, None),
    "rows over fsdp": P("fsdp", None),
    "columns over tp": P(None, "tp"),
    "rows over fsdp, columns over tp": P("fsdp", "tp"),
    "rows over fsdp, each part's rows over tp": P(("fsdp", "tp"), None),
}
B, S, D, F = 2, 3, 4, 6


def sum_over(mesh: Mesh, axis: str) -> np.ndarray:
    """Each device has its own number, 1 to 4; the sum over its group along the axis, by device."""
    spec = P(("fsdp", "tp"))
    own = place(np.arange(1.0, 5.0), mesh, spec)
    return whole(jax.jit(jax.shard_map(partial(reduce_from_tp, axis=axis), in_specs=spec, out_specs=spec))(own))


def lesson(device: str) -> None:
    """Groups, sums, layouts, and a linear layer over one of two axes."""
    mesh = make_mesh(AXES, AxisType.Auto)
    jax.set_mesh(mesh)
    numbers = np.arange(4).reshape(tuple(AXES.values()))  # device numbers are row-major: the last axis is the fastest

    say("Lesson 2: a mesh is an array of devices whose axes have names. Here: fsdp=2, tp=2.", "")
    say("                tp=0  tp=1", *(f"    fsdp={i}   {row[0]:6}{row[1]:6}" for i, row in enumerate(numbers)))
    say("", "A group is what you get by going along an axis while the other ones stay:")
    say(f"    along tp    {numbers.tolist()}", f"    along fsdp  {numbers.T.tolist()}")
    say("Neighbours in number are neighbours in the machine, so the axis that sends most comes last: with 8 GPUs")
    say("in two nodes of 4 and the mesh fsdp=2, tp=4 the groups along tp are the nodes, whose GPUs NVLink connects,")
    say("and only fsdp goes through the network.")

    say("", "Device r has the number r + 1. The sum along an axis, as device 0, 1, 2, 3 sees it:")
    sums = {axis: sum_over(mesh, axis) for axis in AXES}
    for axis, got in sums.items():
        say(f"    {axis:5} {[int(number) for number in got]}")
    by_hand = {"fsdp": (numbers + 1).sum(0)[[0, 1, 0, 1]], "tp": (numbers + 1).sum(1)[[0, 0, 1, 1]]}
    check(sums, by_hand)

    say("", "A layout says for a tensor what each axis does to it: split one of its dims, or nothing.")
    table = normal(0, table=(4, 6))["table"]
    for name, layout in LAYOUTS.items():
        say(f"{name}:")
        show_shards("table", place(table, mesh, layout), mesh)

    say("", "A tensor-parallel layer needs to know the axis tp only. On this mesh a column-parallel linear [4, 6]")
    say("is split in two, and held twice, once for each fsdp:")
    plan = linear.PLANS["column_parallel"]
    state, data = normal(1, w=(D, F), b=(F,)), normal(2, x=(B, S, D), target=(B, S, F))
    module = linear.build(mesh, "manual", plan, state)
    show_shards("w", by_name(state, nnx.state(module, nnx.Param))["w"], mesh)
    say("What it sends stays in the groups along tp; nothing says yet that the two copies belong together (lesson 4):")
    step = run_step(module, mesh, plan, data["x"], data["target"])
    y = data["x"] @ state["w"] + state["b"]
    want = {"y": y, "x.grad": (y - data["target"]) @ state["w"].T}
    check({"y": whole(step.y), "x.grad": whole(step.input_grads["x"])}, want)
    say(f"    norm of y {np.linalg.norm(want['y']):.8f}, of the gradient of x {np.linalg.norm(want['x.grad']):.8f}")


if __name__ == "__main__":
    run(lesson)
