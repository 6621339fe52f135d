"""Chains of products x w_1 w_2 ... under one plan: what a device sends and holds, on a mesh that need not exist.

    plan                  mesh     x [M, D]            w_1, w_3, ... [D, F]    w_2, w_4, ... [F, D]
    megatron              tp       whole               columns over tp         rows over tp
    sequence_parallel     tp       rows over tp        columns over tp         rows over tp
    summa, cannon,        x, y     blocks (x, y)       blocks (x, y)           blocks (x, y)
    gathered
    stationary            x, y     blocks (y, x)       blocks (x, y)           blocks (y, x)

The first two plans use the weights in pairs: an MLP without its activation.

Sources: those of linear.py and grid/matmul.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Compiled

from jax_tp.collectives import copy_to_tp, gather_from_sp, reduce_from_tp, reduce_scatter_to_sp
from jax_tp.grid.product import Grid, multiply
from jax_tp.mesh import make_mesh
from jax_tp.trace import A100_OPTIONS, a100_devices
from parity.question_contract import ChainQuestion

Axes = tuple[str | None, str | None]  # the axes that shard the rows and the columns of a matrix
LAYOUTS: dict[str, tuple[Axes, Axes, Axes]] = {  # of x, of w_1, of w_2
    "megatron": ((None, None), (None, "tp"), ("tp", None)),
    "sequence_parallel": (("tp", None), (None, "tp"), ("tp", None)),
    "summa": (("x", "y"), ("x", "y"), ("x", "y")),
    "cannon": (("x", "y"), ("x", "y"), ("x", "y")),
    "gathered": (("x", "y"), ("x", "y"), ("x", "y")),
    "stationary": (("y", "x"), ("x", "y"), ("y", "x")),
}


def layouts_of(plan: str, num_products: int) -> list[Axes]:
    """The layouts of x, w_1, w_2, ..., and of the result."""
    x, odd, even = LAYOUTS[plan]
    ws = [(odd, even)[index % 2] for index in range(num_products)]
    return [x, *ws, ws[-1] if plan == "stationary" else x]


def multiply_all(x: jax.Array, ws: Sequence[jax.Array], plan: str, panel: int) -> jax.Array:
    """This device's shard of x w_1 w_2 ..., from its shards. Raises ValueError for an odd number of weights in 1D."""
    if plan in ("megatron", "sequence_parallel"):
        for up, down in zip(ws[::2], ws[1::2], strict=True):
            x = copy_to_tp(x, "tp") if plan == "megatron" else gather_from_sp(x, "tp", dim=0)
            y = jnp.dot(jnp.dot(x, up), down)
            x = reduce_from_tp(y, "tp") if plan == "megatron" else reduce_scatter_to_sp(y, "tp", dim=0)
        return x
    for index, w in enumerate(ws):
        rows, columns = ("y", "x") if plan == "stationary" and index % 2 else ("x", "y")
        x = multiply(x, w, Grid(rows, columns, plan, panel))
    return x


def operands_of(question: ChainQuestion, mesh: Mesh) -> tuple[list[jax.ShapeDtypeStruct], jax.ShapeDtypeStruct]:
    """x, w_1, w_2, ... and a cotangent of the result, without data, laid out over the mesh."""
    first, *_, last = question.widths
    shapes = [(question.rows, first), *itertools.pairwise(question.widths), (question.rows, last)]

    def shard(shape: tuple[int, int], axes: Axes) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, question.dtype, sharding=NamedSharding(mesh, P(*axes)))

    *operands, cotangent = map(shard, shapes, layouts_of(question.plan, len(question.widths) - 1))
    return operands, cotangent


def run(question: ChainQuestion, operands: Sequence[jax.Array], cotangent: jax.Array) -> list[jax.Array]:
    """The result and, if asked for, the gradients of all operands."""
    *in_specs, out_spec = (P(*axes) for axes in layouts_of(question.plan, len(question.widths) - 1))
    products = jax.shard_map(
        lambda x, *ws: multiply_all(x, ws, question.plan, question.panel), in_specs=tuple(in_specs), out_specs=out_spec
    )
    if not question.backward:
        return [products(*operands)]
    y, transposed = jax.vjp(products, *operands)
    return [y, *transposed(cotangent)]


class Traced(NamedTuple):
    """The program, compiled for A100s, and the peak of the bytes that a device holds beside operands and results."""

    compiled: Compiled
    temporary_bytes: int


def chain(question: ChainQuestion) -> Traced:
    """Compile the products for A100s."""
    mesh = make_mesh(question.mesh, AxisType.Auto, a100_devices(question.num_devices))
    with jax.set_mesh(mesh):
        program = jax.jit(partial(run, question)).lower(*operands_of(question, mesh))
        compiled = program.compile(compiler_options=A100_OPTIONS)
    return Traced(compiled, compiled.memory_analysis().temp_size_in_bytes)
