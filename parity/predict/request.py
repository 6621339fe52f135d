"""What is asked: a model, a plan and a mesh on a machine, refused in one line where they cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from parity.contract import STYLES
from parity.cost import Machine
from parity.cost.step import check_mesh
from parity.predict import grid
from parity.presets import Preset
from parity.sizes import sizes_text
from parity.step_contract import XLA_FLAGS, StepRequest

DATA_AXES = ("dp", "fsdp")  # those that share out the batch
TENSOR_AXIS = "tp"  # of 1D tensor parallelism; a grid has x and y
PLANS = ("megatron", "sequence_parallel")  # of models of tokens; a ViT has the one of its preset
DTYPES = ("bfloat16", "float32")


class RequestError(ValueError):
    """A mesh, model or batch that cannot be; the message is one line for the user."""


@dataclass(frozen=True)
class Question:
    """A step of `preset` on `machine`: `batch` sequences of `seq` tokens over the whole mesh."""

    machine: Machine
    preset: Preset
    mesh: Mapping[str, int]  # axis -> size, outermost first
    batch: int
    seq: int
    plan: str = "megatron"
    style: str = "auto"
    dtype: str = "bfloat16"
    is_checkpointed: bool = False  # whether each block's activations are made again in the backward pass
    xla_flags: str = "default"  # one of XLA_FLAGS

    @classmethod
    def of(
        cls,
        machine: Machine,
        preset: Preset,
        mesh: Mapping[str, int],
        batch: int,
        seq: int | None,
        plan: str | None,
        style: str | None,
        dtype: str,
        is_checkpointed: bool,
        xla_flags: str = "default",
    ) -> Question:
        """As the command line has it: the plan of the preset and the style auto if none is named, on a grid summa and
        manual; a ViT's sequence is its patches; tp=1 where the mesh has neither tp nor a grid.

        Raises RequestError for a model of tokens without a sequence, and for a mesh of other axes.
        """
        dims = preset.dims
        if preset.layer == "models.vit":
            patches = (dims["I"] // dims["P"]) * (dims["J"] // dims["P"])
            if seq not in (None, patches):
                raise RequestError(f"{preset.name}: a sequence is its {patches} patches; leave out --seq")
            seq = patches
        if seq is None:
            raise RequestError(f"{preset.name}: --seq is missing: how many tokens a sequence has")
        if any(axis in mesh for axis in grid.AXES):
            if reason := grid.why_no_grid(mesh, preset):
                raise RequestError(reason)
            plan, style = plan or grid.ALGORITHMS[0], style or grid.STYLE
        else:
            mesh = mesh if TENSOR_AXIS in mesh else {**mesh, TENSOR_AXIS: 1}
            check_axes(mesh)
        plan, style = plan or preset.family.plan, style or "auto"
        return cls(machine, preset, mesh, batch, seq, plan, style, dtype, is_checkpointed, xla_flags)

    @property
    def is_on_grid(self) -> bool:
        return grid.AXES[0] in self.mesh

    @property
    def plans(self) -> tuple[str, ...]:
        """Those that the model can be traced in on this mesh: on a grid the algorithms."""
        if self.is_on_grid:
            return grid.ALGORITHMS
        return (self.preset.family.plan,) if self.preset.layer == "models.vit" else PLANS

    @property
    def tensor_axes(self) -> tuple[str, ...]:
        """The axes of tensor parallelism."""
        return grid.AXES if self.is_on_grid else (TENSOR_AXIS,)

    @property
    def num_gpus(self) -> int:
        return prod(self.mesh.values())

    @property
    def tokens(self) -> int:
        return self.batch * self.seq

    def size(self, axes: tuple[str, ...]) -> int:
        """GPUs along these axes, 1 where the mesh has none."""
        return prod(size for axis, size in self.mesh.items() if axis in axes)

    def on(self, mesh: Mapping[str, int], plan: str | None = None, style: str | None = None) -> Question:
        """The same on another mesh; in the same plan and style where no other is named."""
        return replace(self, mesh=dict(mesh), plan=plan or self.plan, style=style or self.style)

    @property
    def id(self) -> str:
        words = [self.preset.name, self.plan, self.style, sizes_text(self.mesh), f"B{self.batch}_S{self.seq}"]
        words += ["checkpointed"] * self.is_checkpointed + [self.xla_flags] * (self.xla_flags != "default")
        return "/".join(words)

    def request(self) -> StepRequest:
        """For the frameworks. Raises RequestError, CostError."""
        check(self)
        layer = grid.grid_layer(self.preset) if self.is_on_grid else self.preset.layer
        if layer is None:
            raise RequestError(grid.why_no_grid(self.mesh, self.preset))
        dims = {**self.preset.dims, "B": self.batch, "S": self.seq}
        options: dict[str, Any] = dict(self.preset.options)
        return StepRequest(
            id=self.id,
            layer=layer,
            plan=grid.case_plan(self.preset, self.plan) if self.is_on_grid else self.plan,
            style=self.style,
            mesh=dict(self.mesh),
            dims=dims,
            options=options,
            dtype=self.dtype,
            recompute=self.is_checkpointed,
            gpus_per_node=self.machine.gpus_per_node,
            xla_flags=self.xla_flags,
        )


def check(question: Question) -> None:
    """Raises RequestError for what does not divide, CostError for a mesh that the machine cannot hold."""
    mesh, preset = question.mesh, question.preset
    for word, value, known in (
        ("plan", question.plan, question.plans),
        ("style", question.style, (grid.STYLE,) if question.is_on_grid else STYLES),
        ("dtype", question.dtype, DTYPES),
        ("xla-flags", question.xla_flags, tuple(XLA_FLAGS)),
    ):
        if value not in known:
            raise RequestError(f"{word} {value!r}: there are {', '.join(known)}")
    check_mesh(question.machine, mesh)
    parts = question.size(DATA_AXES)
    if question.batch % parts:
        raise RequestError(
            f"a batch of {question.batch} sequences does not divide over {parts} data-parallel parts "
            f"({sizes_text(mesh)}): take a multiple of {parts}"
        )
    longest = preset.dims["C"] if preset.layer in ("models.gpt", "models.bert") else question.seq
    if question.seq > longest:
        raise RequestError(f"{preset.name} has {longest} positions: a sequence of {question.seq} is longer")
    if question.is_on_grid:
        if reason := grid.undivided(question):
            raise RequestError(reason)
        return
    tp = question.size(("tp",))
    sizes = divided(question)
    for what, size in sizes.items():
        if size % tp:
            raise RequestError(f"{preset.name}: {what} do not divide over tp={tp}: take {degrees_text(sizes, tp)}")


def check_axes(mesh: Mapping[str, int]) -> None:
    """Raises RequestError for a mesh that is not (dp | fsdp) x tp, tp innermost: steps are traced on no other."""
    if unknown := [axis for axis in mesh if axis not in (*DATA_AXES, TENSOR_AXIS)]:
        raise RequestError(f"mesh axis {unknown[0]!r}: there are {', '.join((*DATA_AXES, TENSOR_AXIS, *grid.AXES))}")
    if all(axis in mesh for axis in DATA_AXES):
        raise RequestError(f"mesh {sizes_text(mesh)}: dp and fsdp together are not traced; take one of them")
    if list(mesh)[-1] != TENSOR_AXIS:
        raise RequestError(f"mesh {sizes_text(mesh)}: tp must be the last axis, whose GPUs are neighbours")


def divided(question: Question) -> dict[str, int]:
    """What tensor parallelism cuts, in words, and its size."""
    names = {"H": "heads", "K": "key and value heads", "F": "MLP features"}  # tables are padded
    dims = question.preset.dims
    sizes = {f"{dims[letter]} {what}": dims[letter] for letter, what in names.items() if letter in dims}
    if question.plan == "sequence_parallel":
        sizes[f"{question.seq} tokens of a sequence"] = question.seq
    return sizes


def degrees_text(sizes: Mapping[str, int], below: int) -> str:
    """The tp degrees under `below` that divide all sizes."""
    fitting = [str(degree) for degree in range(1, below) if not any(size % degree for size in sizes.values())]
    return "tp=" + (f"{', '.join(fitting[:-1])} or " if len(fitting) > 1 else "") + fitting[-1]
