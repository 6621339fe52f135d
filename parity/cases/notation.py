"""The notation of case data: tensors as "B S F@tp", expected collectives with a formula and a reason."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass

from parity.contract import Collective


@dataclass(frozen=True)
class Expected:
    """One collective that the plan needs, by hand: its payload in elements as a formula over dims and mesh axes."""

    kind: str
    axis: str
    pass_: str
    elements: str  # e.g. "B*S*D"
    reason: str
    param: str = ""  # only where the layer has this parameter
    of_input: bool = False  # serves the gradient of the input, which training does not take
    of_loss: bool = False  # counted in the loss's dtype (float32 for bfloat16 cases), not in the case's
    in_float32: bool = False  # counted in float32 for bfloat16 cases
    of_ids: bool = False  # int64, whatever the case's dtype
    torch_only: bool = False  # PyTorch does it for a whole group of tensors; XLA leaves out what nobody reads
    of_tokens: bool = False  # a sum over tokens: XLA reduces it in float32 and rounds afterwards, unless told (manual)

    def collective(self, sizes: Mapping[str, int], dtype: str, compiled: bool = False) -> Collective:
        """With numbers: sizes holds the dims and the mesh axes by name; `compiled` takes the dtype that XLA takes."""
        wide = self.of_loss or self.in_float32 or (compiled and self.of_tokens)
        dtype = "int64" if self.of_ids else "float32" if wide and dtype == "bfloat16" else dtype
        payload = evaluate(self.elements, sizes) * ITEMSIZE[dtype]
        names = self.axis.split("+")
        axis = "+".join(name for name in names if len(names) == 1 or sizes[name] > 1)
        return Collective(self.kind, axis, dtype, payload, 1, self.pass_, f"{self.elements}: {self.reason}")


ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "int64": 8}

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}


def evaluate(formula: str, sizes: Mapping[str, int]) -> int:
    """An integer formula over names, `+ - * //` and parentheses. Raises KeyError for an unknown name."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Name):
            return sizes[node.id]
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return int(_OPERATORS[type(node.op)](value(node.left), value(node.right)))
        raise ValueError(f"{formula!r}: only names, integers and + - * // can stand in a formula")

    return value(ast.parse(formula, mode="eval").body)


@dataclass(frozen=True)
class Dim:
    """One dim of a tensor: the letter of its size, and the mesh axes that shard it, if any.

    The size may be a product, H*E: heads of E features. The axes then shard its first factor: heads stay whole. A
    product in parentheses, (C*P*P), may be cut anywhere.
    """

    letter: str
    axes: tuple[str, ...]

    @property
    def sharded(self) -> str:
        """What the axes have to divide: the size, or the first factor of a product."""
        return self.letter if self.letter.startswith("(") else self.letter.partition("*")[0]


def parse_layout(text: str) -> tuple[Dim, ...]:
    """ "B S F@tp" -> a tensor [B, S, F] whose dim F is sharded over the axis tp; "" is a scalar."""
    dims = []
    for word in text.split():
        letter, _, axes = word.partition("@")
        dims.append(Dim(letter, tuple(axes.split("+")) if axes else ()))
    return tuple(dims)


def shape_of(text: str, dims: Mapping[str, int]) -> tuple[int, ...]:
    """The global shape of a tensor in this notation."""
    return tuple(evaluate(dim.letter, dims) for dim in parse_layout(text))


def index_of(
    text: str, dims: Mapping[str, int], mesh: Mapping[str, int], coordinates: Mapping[str, int]
) -> tuple[tuple[int, int], ...]:
    """The [start, stop) in each dim that the device at these coordinates holds; the first axis named is the slowest."""
    index = []
    for dim in parse_layout(text):
        position = 0
        for axis in dim.axes:
            position = position * mesh[axis] + coordinates[axis]
        size = evaluate(dim.letter, dims) // math.prod(mesh[axis] for axis in dim.axes)
        index.append((position * size, (position + 1) * size))
    return tuple(index)
