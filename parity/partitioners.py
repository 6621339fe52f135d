"""Programs in every layout of their operands, put to both frameworks' partitioners; who moves how much.

A layout is a letter for each axis of the mesh: R replicated, S0 or S1 the dim that the axis shards. The layout of the
result is left to the partitioner, but for partial sums: none is left. So the two may end in different layouts, which
are shown. `matmul_to_blocks` wants the same result of both.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from parity.cases.grid_product import product
from parity.cases.notation import shape_of
from parity.contract import Collective
from parity.question_contract import Answer, Letters, PartitionQuestion
from parity.received import received_bytes

MESH = {"x": 2, "y": 2}
DIMS = {"M": 8192, "K": 4096, "N": 14336, "B": 4, "H": 32, "S": 2048, "E": 128}  # a block of Llama-3-8B, 8192 tokens
BLOCKS: Letters = ("S0", "S1")


def letters(num_dims: int) -> list[Letters]:
    """All layouts of a tensor over two axes."""
    return list(itertools.product(("R", *(f"S{dim}" for dim in range(num_dims))), repeat=len(MESH)))


def pairs() -> list[tuple[Letters, ...]]:
    """All layouts of two matrices: 81."""
    return list(itertools.product(letters(2), repeat=2))


def with_bias() -> list[tuple[Letters, ...]]:
    """All layouts of x and w, with a bias that is sharded as the columns of w are."""
    return [(x, w, tuple("S0" if letter == "S1" else "R" for letter in w)) for x, w in pairs()]


@dataclass(frozen=True)
class Program:
    """A function of whole tensors, as each framework has it under `name`, and the layouts in which it is asked for."""

    title: str
    name: str
    operands: tuple[str, ...]  # as "M K"
    layouts: Callable[[], Sequence[tuple[Letters, ...]]]
    output: Letters | None = None


PROGRAMS = {
    "matmul": Program("y = x w", "matmul", ("M K", "K N"), pairs),
    "matmul_to_blocks": Program("y = x w, y wanted in blocks S0,S1", "matmul", ("M K", "K N"), pairs, BLOCKS),
    "linear": Program("y = x w + b, b laid out as w's columns", "linear", ("M K", "K N", "N"), with_bias),
    "scores": Program(
        "bhqe,bhke->bhqk, q and k laid out alike",
        "scores",
        ("B H S E", "B H S E"),
        lambda: [(layout, layout) for layout in letters(4)],
    ),
    "add": Program("x + z", "add", ("M K", "M K"), pairs),
    "sum_rows": Program("sum of x over its rows", "sum_rows", ("M K",), lambda: [(one,) for one in letters(2)]),
    "sum_columns": Program(
        "sum of x over its columns", "sum_columns", ("M K",), lambda: [(one,) for one in letters(2)]
    ),
    "sum_all": Program("sum of x", "sum_all", ("M K",), lambda: [(one,) for one in letters(2)]),
    "softmax": Program("softmax of x over its columns", "softmax", ("M K",), lambda: [(one,) for one in letters(2)]),
}


def questions_of(names: Sequence[str], dims: Mapping[str, int], dtype: str) -> list[PartitionQuestion]:
    """Every program of these names in each of its layouts."""
    return [
        PartitionQuestion(
            id="/".join([name, *(",".join(layout) for layout in layouts)]),
            program=program.name,
            mesh=MESH,
            shapes=tuple(shape_of(operand, dims) for operand in program.operands),
            layouts=tuple(layouts),
            output=program.output,
            dtype=dtype,
        )
        for name in names
        for program in [PROGRAMS[name]]
        for layouts in program.layouts()
    ]


@dataclass(frozen=True)
class Row:
    """The two answers to one question."""

    question: PartitionQuestion
    torch: Answer
    jax: Answer

    @property
    def received(self) -> tuple[Fraction | None, Fraction | None]:
        """Bytes that a device receives, torch's and JAX's; None where one refuses or was not asked."""
        torch, jax = (
            None if answer.refused or answer.skipped else received_bytes(answer.collectives, self.question.mesh)
            for answer in (self.torch, self.jax)
        )
        return torch, jax

    @property
    def fewer(self) -> str:
        """Who moves fewer bytes: "torch", "jax", "equal"; "" where one does not answer."""
        torch, jax = self.received
        if torch is None or jax is None:
            return ""
        return "equal" if torch == jax else "torch" if torch < jax else "jax"

    def to_json(self) -> dict[str, Any]:
        question, received = self.question, dict(zip(("torch", "jax"), self.received, strict=True))
        return {
            "program": question.id.partition("/")[0],
            "layouts": question.layouts,
            "wanted": question.output,
            "shapes": question.shapes,
            "dtype": question.dtype,
            "fewer": self.fewer,
            **{
                name: {
                    "collectives": [one.to_json() for one in answer.collectives],
                    "received_bytes": None if received[name] is None else float(received[name] or 0),
                    "output": answer.output,
                    "refused": answer.refused,
                    "skipped": answer.skipped,
                }
                for name, answer in (("torch", self.torch), ("jax", self.jax))
            },
            "torch_on_cpu": [one.to_json() for one in self.torch.on_cpu],
            "jax_types_refuse": self.jax.refused_by_types,
        }


def rows_of(questions: Sequence[PartitionQuestion], answers: Mapping[str, Mapping[str, Answer]]) -> list[Row]:
    """The answers, by question."""
    return [Row(one, answers["torch"][one.id], answers["jax"][one.id]) for one in questions]


def summary_of(rows: Sequence[Row]) -> dict[str, int]:
    """How often each moves fewer bytes, both as many, and each refuses."""
    fewer = Counter(row.fewer for row in rows)
    return {
        "rows": len(rows),
        "torch_fewer": fewer["torch"],
        "jax_fewer": fewer["jax"],
        "equal": fewer["equal"],
        "torch_refused": sum(bool(row.torch.refused) for row in rows),
        "jax_refused": sum(bool(row.jax.refused) for row in rows),
        "jax_types_refuse": sum(bool(row.jax.refused_by_types) for row in rows),
        "torch_differs_on_cpu": sum(bool(row.torch.on_cpu) for row in rows),
    }


def explicit_products(dims: Mapping[str, int], dtype: str) -> Iterator[tuple[str, Letters, list[Collective]]]:
    """The algorithms of grid/matmul.py on this mesh, y = x w into blocks: (name, layout of x, collectives forward).

    w is in blocks for all of them; the layouts are those of a row of `matmul_to_blocks` each.
    """
    sizes = {**dims, **MESH}
    for name in ("summa", "cannon", "gathered", "stationary"):
        x: Letters = ("S1", "S0") if name == "stationary" else BLOCKS
        formulas = product(name, "M", "K", {"w": "N"})
        yield name, x, [one.collective(sizes, dtype) for one in formulas if one.pass_ == "forward"]
