"""A traced step against the closed formula of its plan, by pass, kind and axis; differences are named or unexplained.

formula    the collectives of the layers in their plan, of data parallelism, and of the norm of the gradients
torch      as dispatched: must equal the formula, no rewrites allowed
jax        as compiled for A100s: collectives with unused results are removed, parameters of all blocks are stacked
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from parity.cases import block
from parity.cases.family import Family
from parity.cases.hybrid import beside, of_part
from parity.cases.notation import Expected
from parity.cases.training import training_collectives
from parity.contract import PASSES, Collective
from parity.rewrites import Explained, explain, payloads
from parity.step_contract import StepRequest, StepTrace
from parity.steps import family_of_request, padded

DATA_AXES = ("dp", "fsdp")


@dataclass(frozen=True)
class Row:
    """Payload bytes and number of calls, in the formula and in the trace, for one pass, kind, axis and dtype."""

    pass_: str
    kind: str
    axis: str
    dtype: str
    formula_bytes: int
    traced_bytes: int
    formula_count: int
    traced_count: int


@dataclass(frozen=True)
class Reconciliation:
    """A trace compared with the formula; `unexplained` has the rows whose difference no rewrite explains."""

    framework: str
    rows: tuple[Row, ...]
    rewrites: tuple[Explained, ...]
    unexplained: tuple[Row, ...]
    unexplained_bytes: int

    def summary(self) -> str:
        """The rewrites by name and the unexplained bytes, in one line."""
        sizes: dict[str, int] = {}
        for one in self.rewrites:
            sizes[one.name] = sizes.get(one.name, 0) + one.payload_bytes
        found = "".join(f"; {name}: {size:,} B" for name, size in sizes.items())
        return f"sends what the formula of its plan says{found}; unexplained: {self.unexplained_bytes:,} B"

    def to_json(self) -> dict[str, Any]:
        def row(one: Row | Explained) -> dict[str, Any]:
            return {name.rstrip("_"): value for name, value in vars(one).items()}

        return {
            "rows": list(map(row, self.rows)),
            "rewrites": list(map(row, self.rewrites)),
            "unexplained": list(map(row, self.unexplained)),
            "unexplained_bytes": self.unexplained_bytes,
        }


def reconcile(request: StepRequest, trace: StepTrace) -> Reconciliation:
    """Compare the trace of a request with its closed formula."""
    is_compiled = trace.framework == "jax"
    expected = step_formula(padded(request), is_compiled)
    want, have = payloads(expected), payloads(trace.collectives)
    rewrites, left = explain(want, have) if is_compiled else ([], difference(want, have))
    counts = [counts_of(entries) for entries in (expected, trace.collectives)]
    rows = tuple(
        Row(pass_, kind, axis, dtype, want.get(key, 0), have.get(key, 0), *(count.get(key, 0) for count in counts))
        for key in sorted({*want, *have}, key=lambda key: (PASSES.index(key[0]), *key[1:]))
        for pass_, axis, dtype, kind in [key]
    )
    return Reconciliation(
        framework=trace.framework,
        rows=rows,
        rewrites=tuple(rewrites),
        unexplained=tuple(row for row in rows if (row.pass_, row.axis, row.dtype, row.kind) in left),
        unexplained_bytes=sum(map(abs, left.values())),
    )


def difference(want: dict[Any, int], have: dict[Any, int]) -> dict[Any, int]:
    """Bytes that `have` has in excess of `want` (negative: lacks), by key, where they differ."""
    more = {key: have.get(key, 0) - want.get(key, 0) for key in {*want, *have}}
    return {key: size for key, size in more.items() if size}


def counts_of(entries: Sequence[Any]) -> dict[Any, int]:
    """Calls by pass, axis, dtype and kind."""
    found: dict[Any, int] = {}
    for entry in entries:
        key = entry.pass_, entry.axis, entry.dtype, entry.kind
        found[key] = found.get(key, 0) + entry.count
    return found


def step_formula(request: StepRequest, is_compiled: bool = False) -> list[Collective]:
    """The collectives of one training step under the plan, with sizes filled in.

    is_compiled: as XLA does, leave out collectives with unused results and stack the parameters of all blocks.
    """
    family = family_in_mesh(request)
    (variant,) = family.variants
    formulas = [formula for formula in family.collectives if formula.param in ("", *variant.params)]
    if request.recompute:
        formulas += recomputed(request)
    formulas = [formula for formula in formulas if not (is_compiled and formula.torch_only)]
    layouts = [family.tensors[name] for name in (stacked(variant.params) if is_compiled else variant.params)]
    steps = training_collectives(formulas, layouts, {"num_microbatches": 1}, request.mesh)
    if not request.optimizer:
        steps = [formula for formula in steps if formula.pass_ != "optimizer"]
    sizes = {**request.dims, **request.mesh}
    numbers = [on_mesh(formula, request).collective(sizes, request.dtype) for formula in steps]
    return [entry for entry in numbers if entry.axis]


def recomputed(request: StepRequest) -> list[Expected]:
    """What the blocks send again in the backward pass: as forward, but for what only their output needs."""
    axis = next((axis for axis in request.mesh if axis in DATA_AXES), None)
    again = recomputed_on_grid(request) if request.layer.startswith("grid.") else recomputed_1d(request)
    return [of_part(formula, axis) for formula in again] if axis else again


def recomputed_1d(request: StepRequest) -> list[Expected]:
    """All but the last sum of each block, which nobody reads."""
    plan = "sequence_parallel" if request.plan == "sequence_parallel" else "megatron"  # a ViT names its task
    forward = [formula for formula in block.family(block.FAMILIES, plan).collectives if is_of_block(formula)]
    return [replace(formula, pass_="backward") for formula in forward[:-1]] * request.dims["L"]


def recomputed_on_grid(request: StepRequest) -> list[Expected]:
    """All but what the last product of each block sends for y alone: in `stationary` the sums of y.

    The panels of SUMMA: XLA sees that nobody reads them; PyTorch's product keeps its operands when it is done.
    """
    family = family_of_request(request)
    (variant,) = family.variants
    own = [one for one in family.collectives if one.param in variant.params and one.param.startswith("blocks.")]
    return [
        replace(one, pass_="backward", torch_only=one.kind == "broadcast" and is_of_last_product(one))
        for one in own
        if one.pass_ == "forward" and not (one.kind == "reduce_scatter" and is_of_last_product(one))
    ]


def is_of_last_product(formula: Expected) -> bool:
    """Whether the last product of a block sends it."""
    return formula.param.endswith(".mlp.down.w")


def is_of_block(formula: Expected) -> bool:
    """Whether the formula belongs to the forward pass of the block itself, not to the loss that a case appends."""
    return formula.pass_ == "forward" and not formula.of_loss


def family_in_mesh(request: StepRequest) -> Family:
    """The family of the request's model, with data parallelism if the mesh has an axis for it."""
    inner = family_of_request(request)
    axis = next((axis for axis in request.mesh if axis in DATA_AXES), None)
    return inner if axis is None else beside(inner, axis, tuple(variant.name for variant in inner.variants))


def on_mesh(formula: Expected, request: StepRequest) -> Expected:
    """The formula restricted to those of its axes that have more than one device."""
    names = [name for name in formula.axis.split("+") if request.mesh[name] > 1]
    return replace(formula, axis="+".join(names))


def stacked(params: Sequence[str]) -> list[str]:
    """The parameters with those of all blocks reduced to those of block 0, as in a stacked model."""
    return [name for name, _ in groupby(params) if ".blocks." not in f".{name}" or ".blocks.0." in f".{name}"]
