"""Tensor-parallel steps of a linear layer and an MLP in real low precision, right or with a planted fault.

Written out by hand, without autograd or a rounding model: NumPy arrays of the dtype, products summed in shuffled
blocks, partial sums of the devices stored in the dtype and added in random order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import erf

from parity.arithmetic import ACCUMULATORS
from parity.contract import DTYPES

TP = 4

Arrays = dict[str, np.ndarray]


class Devices:
    """Arithmetic of `dtype` on TP devices: `op_by_op` rounds after each elementwise operation, else once at the end."""

    def __init__(self, dtype: str, seed: int, op_by_op: bool = True) -> None:
        self.dtype, self.wide = DTYPES[dtype], DTYPES[ACCUMULATORS[dtype]]
        self.rng = np.random.default_rng(seed)
        self.elementwise = self.dtype if op_by_op else self.wide

    def dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        order = self.rng.permutation(a.shape[-1])
        blocks = np.array_split(order, self.rng.integers(1, min(len(order), 16) + 1))
        total = np.zeros((a.shape[0], b.shape[1]), self.wide)
        for block in blocks:
            total = total + a[:, block].astype(self.wide) @ b[block].astype(self.wide)
        return total.astype(self.dtype)

    def all_reduce(self, partials: list[np.ndarray]) -> np.ndarray:
        total = np.zeros_like(partials[0])
        for rank in self.rng.permutation(len(partials)):
            total = total + partials[rank]
        return total

    def sum_tokens(self, array: np.ndarray) -> np.ndarray:
        total = np.zeros(array.shape[1:], self.elementwise)
        for token in self.rng.permutation(len(array)):
            total = total + array[token].astype(self.elementwise)
        return total.astype(self.dtype)

    def gelu(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """gelu_erf(z) and its derivative."""
        z = z.astype(self.elementwise)
        one, half, root = (self.elementwise.type(v) for v in (1.0, 0.5, np.sqrt(0.5)))
        density = self.elementwise.type(1 / np.sqrt(2 * np.pi)) * np.exp(-half * z * z)
        cdf = half * (one + erf((z * root).astype(self.wide)).astype(self.elementwise))
        return (z * cdf).astype(self.dtype), (cdf + z * density).astype(self.dtype)

    def gelu_tanh(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = z.astype(self.elementwise)
        one, half, cubic, root = (self.elementwise.type(v) for v in (1.0, 0.5, 0.044715, np.sqrt(2 / np.pi)))
        tanh = np.tanh(root * (z + cubic * z * z * z))
        slope = root * (one + self.elementwise.type(3) * cubic * z * z)
        derivative = half * (one + tanh) + half * z * (one - tanh * tanh) * slope
        return (half * z * (one + tanh)).astype(self.dtype), derivative.astype(self.dtype)

    def loss(self, y: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        difference = y.astype(self.wide) - target.astype(self.wide)
        return self.wide.type(0.5) * np.sum(difference * difference), difference.astype(self.dtype)


def swap(shards: list[np.ndarray]) -> list[np.ndarray]:
    return [shards[1], shards[0], *shards[2:]]


def row_parallel_output(devices: Devices, partials: list[np.ndarray], bias: np.ndarray, fault: str) -> np.ndarray:
    """The sum of the partial products, and then the bias, once."""
    if fault == "bias added tp times":
        return devices.all_reduce([partial + bias for partial in partials])
    return (partials[0] if fault == "missing all-reduce" else devices.all_reduce(partials)) + bias


def step_mlp(devices: Devices, params: Arrays, batch: Arrays, fault: str = "", activation: str = "gelu_erf") -> Arrays:
    """The Megatron pair on TP devices: up column-parallel, down row-parallel, one all-reduce each way."""
    shape = batch["x"].shape
    x = batch["x"].reshape(-1, shape[-1])
    act = devices.gelu_tanh if (fault == "tanh for erf") != (activation == "gelu_tanh") else devices.gelu
    up_w, up_b = np.split(params["up.w"], TP, 1), np.split(params["up.b"], TP)
    down_w = np.split(params["down.w"], TP)
    if fault == "swapped shards":
        down_w = swap(down_w)
    z = [devices.dot(x, w) + b for w, b in zip(up_w, up_b, strict=True)]
    h, slope = zip(*map(act, z), strict=True)
    partials = [devices.dot(a, w) for a, w in zip(h, down_w, strict=True)]
    y = row_parallel_output(devices, partials, params["down.b"], fault)
    loss, dy = devices.loss(y, batch["target"].reshape(y.shape))
    dz = [devices.dot(dy, w.T) * s for w, s in zip(down_w, slope, strict=True)]
    dx = [devices.dot(d, w.T) for d, w in zip(dz, up_w, strict=True)]
    return {
        "y": y.reshape(shape),
        "loss": loss,
        "x.grad": (dx[0] if fault == "missing all-reduce of x.grad" else devices.all_reduce(dx)).reshape(shape),
        "up.w.grad": np.concatenate([devices.dot(x.T, d) for d in dz], 1),
        "up.b.grad": np.concatenate([devices.sum_tokens(d) for d in dz]),
        "down.w.grad": np.concatenate([devices.dot(a.T, dy) for a in h]),
        "down.b.grad": devices.sum_tokens(dy),
    }


def step_row_parallel(devices: Devices, params: Arrays, batch: Arrays, fault: str = "") -> Arrays:
    x = batch["x"].reshape(-1, batch["x"].shape[-1])
    x_shards, w = np.split(x, TP, 1), np.split(params["w"], TP)
    if fault == "swapped shards":
        w = swap(w)
    partials = [devices.dot(a, b) for a, b in zip(x_shards, w, strict=True)]
    y = row_parallel_output(devices, partials, params["b"], fault)
    loss, dy = devices.loss(y, batch["target"].reshape(y.shape))
    return {
        "y": y.reshape(batch["target"].shape),
        "loss": loss,
        "x.grad": np.concatenate([devices.dot(dy, b.T) for b in w], 1).reshape(batch["x"].shape),
        "w.grad": np.concatenate([devices.dot(a.T, dy) for a in x_shards]),
        "b.grad": devices.sum_tokens(dy),
    }


def step_column_parallel(devices: Devices, params: Arrays, batch: Arrays, fault: str = "") -> Arrays:
    x = batch["x"].reshape(-1, batch["x"].shape[-1])
    w, b = np.split(params["w"], TP, 1), np.split(params["b"], TP)
    y_shards = [devices.dot(x, w_shard) + b_shard for w_shard, b_shard in zip(w, b, strict=True)]
    y = np.concatenate(swap(y_shards) if fault == "swapped shards" else y_shards, 1)
    loss, dy = devices.loss(y, batch["target"].reshape(y.shape))
    dy_shards = np.split(dy, TP, 1)
    dx = [devices.dot(d, w_shard.T) for d, w_shard in zip(dy_shards, w, strict=True)]
    return {
        "y": y.reshape(batch["target"].shape),
        "loss": loss,
        "x.grad": (dx[0] if fault == "missing all-reduce" else devices.all_reduce(dx)).reshape(batch["x"].shape),
        "w.grad": np.concatenate([devices.dot(x.T, d) for d in dy_shards], 1),
        "b.grad": np.concatenate([devices.sum_tokens(d) for d in dy_shards]),
    }


STEPS: dict[str, tuple[Callable[..., Arrays], str, dict[str, str]]] = {
    "column_parallel": (step_column_parallel, "linear", {}),
    "row_parallel": (step_row_parallel, "linear", {}),
    "mlp": (step_mlp, "mlp", {"activation": "gelu_erf"}),
    "mlp_tanh": (step_mlp, "mlp", {"activation": "gelu_tanh"}),
}
