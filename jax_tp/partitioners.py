"""Which collectives XLA's partitioner inserts, given the layouts of the operands; compiled for A100s, needs no device.

A program is a function of global arrays. XLA handles all of it at once: Shardy propagates the layouts from operands and
results to every operation, and the partitioner inserts the collectives that lead from one layout to the next.

Sources: https://openxla.org/shardy/propagation, https://docs.jax.dev/en/latest/aot.html
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Compiled

from jax_tp.mesh import make_mesh
from jax_tp.trace import QUICK_OPTIONS, a100_devices
from parity.question_contract import Letters, PartitionQuestion

PROGRAMS: dict[str, Callable[..., jax.Array]] = {
    "matmul": lambda x, w: x @ w,
    "linear": lambda x, w, b: x @ w + b,
    "scores": lambda q, k: jnp.einsum("bhqe,bhke->bhqk", q, k),
    "add": lambda x, z: x + z,
    "sum_rows": lambda x: x.sum(0),
    "sum_columns": lambda x: x.sum(1),
    "sum_all": lambda x: x.sum(),
    "softmax": lambda x: jax.nn.softmax(x, axis=1),
}


def layout_of(letters: Letters, axes: tuple[str, ...]) -> P:
    """("S0", "R"), ("x", "y") -> P("x"): the mesh axes that shard each dim."""
    dims = max((int(letter[1:]) + 1 for letter in letters if letter != "R"), default=0)
    pairs = list(zip(letters, axes, strict=True))
    return P(*(tuple(axis for letter, axis in pairs if letter == f"S{dim}") or None for dim in range(dims)))


def letters_of(layout: P, axes: tuple[str, ...]) -> Letters:
    """The inverse of `layout_of`."""
    names = [(entry,) if isinstance(entry, str) else entry or () for entry in layout]
    where = {axis: f"S{dim}" for dim, entry in enumerate(names) for axis in entry}
    return tuple(where.get(axis, "R") for axis in axes)


def operand(mesh: Mesh, shape: tuple[int, ...], layout: P, dtype: str) -> jax.ShapeDtypeStruct:
    """An array without data, laid out over the mesh."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, layout))


def partition(question: PartitionQuestion) -> tuple[Compiled, Letters]:
    """The program compiled for A100s, and the layout of the result.

    Propagates JAX's exception if it rejects the layouts.
    """
    mesh = make_mesh(question.mesh, AxisType.Auto, a100_devices(question.num_devices))
    layouts = (layout_of(letters, mesh.axis_names) for letters in question.layouts)
    operands = [operand(mesh, *one, question.dtype) for one in zip(question.shapes, layouts, strict=True)]
    wanted = None if question.output is None else NamedSharding(mesh, layout_of(question.output, mesh.axis_names))
    program = jax.jit(PROGRAMS[question.program], out_shardings=wanted)
    with jax.set_mesh(mesh):
        compiled = program.lower(*operands).compile(compiler_options=QUICK_OPTIONS)
    return compiled, letters_of(compiled.output_shardings.spec, mesh.axis_names)


def why_types_refuse(question: PartitionQuestion) -> str:
    """Why explicit shardings reject the program as ambiguous, in one line, or "" if they accept it."""
    mesh = make_mesh(question.mesh, AxisType.Explicit, a100_devices(question.num_devices))
    layouts = (layout_of(letters, mesh.axis_names) for letters in question.layouts)
    operands = [operand(mesh, *one, question.dtype) for one in zip(question.shapes, layouts, strict=True)]
    try:
        with jax.set_mesh(mesh):
            jax.eval_shape(PROGRAMS[question.program], *operands)
    except Exception as error:  # ShardingTypeError or ValueError, depending on the operation
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""
