"""Lesson 1, column- and row-parallel: an MLP on 4 devices.

    torchrun --nproc-per-node 4 -m jax_tp.examples.e01_basic        (or mpiexec, or plain python: common.py)

The layer is jax_tp/mlp.py. A column-parallel kernel is `P(None, "tp")` of Flax's [in, out], a row-parallel one
`P("tp", None)`; a replicated input is `P(None, None, None)`. A sum whose parts lie on the devices has no name outside
of `shard_map`: inside, it is a value that varies over "tp", and `psum` adds its parts.
"""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType
from scipy.special import erf

from jax_tp import mlp
from jax_tp.examples.common import by_name, check, normal, run, run_step, say, show_shards, whole
from jax_tp.mesh import make_mesh

B, S, D, F, TP = 2, 3, 8, 16, 4


def unsharded(state: dict[str, np.ndarray], x: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """The whole on one device in NumPy: hidden features, y, loss and the gradient of everything, by the chain rule."""
    h = x @ state["up.w"] + state["up.b"]
    probability = 0.5 * (1 + erf(h / np.sqrt(2)))  # gelu(h) = h times it
    hidden = h * probability
    y = hidden @ state["down.w"] + state["down.b"]
    dy = y - target
    dh = dy @ state["down.w"].T * (probability + h * np.exp(-(h**2) / 2) / np.sqrt(2 * np.pi))
    grads = {"up.w": (x, dh), "down.w": (hidden, dy)}
    grads = {name: np.einsum("bsi,bso->io", *factors) for name, factors in grads.items()}
    grads |= {"up.b": dh.sum((0, 1)), "down.b": dy.sum((0, 1)), "x": dh @ state["up.w"].T}
    named = {f"{name}.grad": grad for name, grad in grads.items()}
    return {"hidden": hidden, "y": y, "loss": 0.5 * np.square(dy).sum(), **named}


def lesson(device: str) -> None:
    """y = gelu(x up + b) down + c, first all on one device, then on four."""
    mesh, plan = make_mesh({"tp": TP}, AxisType.Auto), mlp.PLANS["megatron"]
    jax.set_mesh(mesh)
    state = normal(0, up_w=(D, F), up_b=(F,), down_w=(F, D), down_b=(D,))
    data = normal(1, x=(B, S, D), target=(B, S, D))
    module = mlp.build(mesh, "manual", plan, state)
    params = by_name(state, nnx.state(module, nnx.Param))

    say("Lesson 1: an MLP, y = gelu(x up + b) down + c, tensor-parallel on 4 devices.", "")
    say("The first weight is split by columns, the second by rows. Each device holds a quarter of both:")
    for name in ("up.w", "down.w"):
        show_shards(name, params[name], mesh)
    say("The biases: that of the columns is split with them; the other is whole on every device.")
    for name in ("up.b", "down.b"):
        show_shards(name, params[name], mesh)

    want = unsharded(state, **data)
    hidden, y = want.pop("hidden"), want["y"]
    own = [slice(i * F // TP, (i + 1) * F // TP) for i in range(TP)]
    parts = [hidden[0, 0, columns] @ state["down.w"][columns, 0] for columns in own]
    say("", "Why this pair? A column of `up` gives one hidden feature, and gelu takes each feature by itself: so each")
    say("device goes on with its own quarter, and nothing is sent. A row of `down` takes one hidden feature: so each")
    say("device has a part of every element of y. The parts of y[0, 0, 0], one a device, their sum, and c[0] once:")
    say(f"    {' + '.join(f'({part:.6f})' for part in parts)} = {sum(parts):.6f}")
    say(f"    {sum(parts):.6f} + ({state['down.b'][0]:.6f}) = {y[0, 0, 0]:.6f}")
    say("(Had each device added c to its part, the sum would have c four times: a fault that runs and trains.)")

    say("", f"The sum is one all-reduce of y, {B} x {S} x {D} float64 numbers. Backward is the mirror image: each")
    say("quarter of the columns gives a part of the gradient of x, and their sum is the second all-reduce:")
    step = run_step(module, mesh, plan, data["x"], data["target"])

    say("", "And it is the same function: loss, output and gradients against NumPy on one device,")
    got = {"y": whole(step.y), "loss": whole(step.loss), "x.grad": whole(step.input_grads["x"])}
    got |= {f"{name}.grad": whole(grad) for name, grad in by_name(state, step.param_grads).items()}
    check(got, want)
    for name, value in got.items():
        say(f"    norm of {name:12} {list(value.shape)!s:10} {np.linalg.norm(value):.8f}")


if __name__ == "__main__":
    run(lesson)
