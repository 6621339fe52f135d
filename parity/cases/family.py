"""A plan of a layer as data, and the cases that it makes with each style, mesh, dtype and kind of operands."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from parity.cases.notation import Expected, evaluate, parse_layout, shape_of
from parity.cases.training import RECIPE, training_collectives
from parity.contract import STYLES, Case
from parity.sizes import sizes_text

# What is judged: "exact" has small integers as operands, so that every summation order gives the same bits.
NUMERICS = ("float64", "float32", "bfloat16", "exact-float32", "exact-bfloat16")
# The same, but what is judged are the steps of a training.
TRAINING = ("train-float64", "train-float32")


class CaseError(Exception):
    """A case that cannot be: one line that names what was wrong and what would work."""


@dataclass(frozen=True)
class Variant:
    """A setting of a layer's options with the name that it has in a case's id."""

    name: str
    options: Mapping[str, Any]
    numerics: tuple[str, ...]
    params: tuple[str, ...]  # the parameters that the layer then has
    inputs: tuple[str, ...] = ()  # its inputs beside the family's
    dims: Mapping[str, int] = field(default_factory=dict)  # in place of the family's
    sizes: Mapping[str, str] = field(default_factory=dict)  # options that are sizes: the dim letter of each
    max_norm: float = RECIPE["max_norm"]  # in training; between the norms of its steps, so that some are clipped


@dataclass(frozen=True)
class Family:
    """One plan of one layer."""

    layer: str
    plan: str
    dims: Mapping[str, int]
    tensors: Mapping[str, str]  # in the notation of `parse_layout`: x, y and every parameter
    collectives: tuple[Expected, ...]
    variants: tuple[Variant, ...]
    batch: tuple[str, ...] = ("x",)  # the tensors that are inputs
    ids: Mapping[str, str] = field(default_factory=dict)  # inputs that are ids: the dim letter of their number
    ignored: Mapping[str, int] = field(default_factory=dict)  # of these inputs: the id of those that do not count
    in_float32: tuple[str, ...] = ()  # tensors that are float32 in bfloat16 cases
    inside: Mapping[str, str] = field(default_factory=dict)  # tensors that no device reports, in the same notation
    axes: tuple[str, ...] = ()  # mesh axes that it runs on without a tensor sharded over them
    styles: tuple[str, ...] = STYLES
    square: bool = False  # only on meshes whose axes are all of one size
    recipe: Mapping[str, Any] = field(default_factory=dict)  # of training: what is other than in RECIPE
    multiples: Mapping[str, str] = field(default_factory=dict)  # dims that have to be multiples of another dim
    is_chosen: bool = False  # the framework's partitioner chooses the collectives: noted beside the formula, not judged

    def shapes(self, case: Case) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Global shapes of the parameters that the case's variant has, and of its inputs."""
        (variant,) = (variant for variant in self.variants if variant.name == case.variant)
        params = {name: shape_of(self.tensors[name], case.dims) for name in variant.params}
        return params, {name: shape_of(self.tensors[name], case.dims) for name in (*self.batch, *variant.inputs)}

    def expected(self, case: Case) -> list[Expected]:
        """The collectives that the case's variant needs on the case's mesh, in one step."""
        params, _ = self.shapes(case)
        formulas = [formula for formula in self.collectives if formula.param in ("", *params)]
        if case.task == "train":
            formulas = training_collectives(formulas, [self.tensors[name] for name in params], case.recipe, case.mesh)
        return [formula for formula in formulas if any(case.mesh[axis] > 1 for axis in formula.axis.split("+"))]

    def used_axes(self) -> set[str]:
        """The mesh axes that it needs."""
        layouts = map(parse_layout, self.tensors.values())
        return {*self.axes, *(axis for layout in layouts for dim in layout for axis in dim.axes)}

    def fits(self, mesh: Mapping[str, int]) -> bool:
        """Whether it can run on a mesh with these axes; the others of a suite's meshes are for other families."""
        return set(mesh) == self.used_axes() and not (self.square and len(set(mesh.values())) > 1)

    def ranges(self, case: Case) -> dict[str, int]:
        """How many ids there are, for each input that holds ids."""
        _, inputs = self.shapes(case)
        return {name: case.dims[letter] for name, letter in self.ids.items() if name in inputs}


@dataclass(frozen=True)
class Selection:
    """Which of a family's cases are wanted; None takes all that the family has."""

    meshes: tuple[Mapping[str, int], ...]
    numerics: tuple[str, ...]
    variants: tuple[str, ...] | None = None
    plans: tuple[str, ...] | None = None
    layers: tuple[str, ...] | None = None  # globs
    dims: Mapping[str, int] | None = None  # in place of the family's own sizes
    seeds: tuple[int, ...] = (0,)


def cases_of(family: Family, selection: Selection) -> Iterator[Case]:
    """Every case of the family that is selected. Raises CaseError for a mesh or a size that the plan cannot have."""
    if selection.plans is not None and family.plan not in selection.plans:
        return
    if selection.layers is not None and not any(fnmatch.fnmatchcase(family.layer, glob) for glob in selection.layers):
        return
    for variant in family.variants:
        if selection.variants is not None and variant.name not in selection.variants:
            continue
        given = {letter: size for letter, size in (selection.dims or {}).items() if letter in family.dims}
        dims = {**family.dims, **variant.dims, **given}
        check_pairs(family, variant, dims)
        for mesh in filter(family.fits, selection.meshes):
            check_divisible(family, dims, mesh)
            for style in family.styles:
                for numerics in (name for name in variant.numerics if name in selection.numerics):
                    for seed in selection.seeds:
                        yield make_case(family, variant, dims, mesh, style, numerics, seed)


def make_case(
    family: Family,
    variant: Variant,
    dims: Mapping[str, int],
    mesh: Mapping[str, int],
    style: str,
    numerics: str,
    seed: int,
) -> Case:
    """The case with its id, and the key of its inputs, which it shares with the other styles, plans and meshes."""
    mesh_name = "_".join(f"{axis}{size}" for axis, size in mesh.items())
    words = [family.layer, family.plan, variant.name, style, mesh_name, numerics]
    sizes = "_".join(f"{letter}{size}" for letter, size in dims.items())
    inputs = [family.layer, variant.name, numerics, sizes, f"seed{seed}"]  # plans may differ in their sizes
    if dims != {**family.dims, **variant.dims}:
        words.append(sizes)
    if seed:
        words.append(f"seed{seed}")
    return Case(
        id="/".join(words),
        layer=family.layer,
        plan=family.plan,
        variant=variant.name,
        style=style,
        mesh=dict(mesh),
        dims=dict(dims),
        options={**variant.options, **{name: dims[letter] for name, letter in variant.sizes.items()}},
        dtype=numerics.rpartition("-")[2],
        operands="integers" if numerics.startswith("exact-") else "normal",
        seed=seed,
        inputs=".".join(inputs),
        task="train" if numerics in TRAINING else "step",
        recipe={**RECIPE, "max_norm": variant.max_norm, **family.recipe} if numerics in TRAINING else {},
    )


def check_mesh(family: Family, mesh: Mapping[str, int]) -> None:
    """Raise CaseError if the mesh lacks an axis of the plan, has one too many, or is not square where it must be."""
    where, used = f"{family.layer}/{family.plan}", family.used_axes()
    for axis in [*mesh, *used]:
        if axis not in used:
            raise CaseError(f"{where}: the mesh axis {axis!r} is unknown; this plan uses {', '.join(sorted(used))}")
        if axis not in mesh:
            example = sizes_text(dict.fromkeys(sorted(used), 4 if len(used) == 1 else 2))
            raise CaseError(f"{where}: the mesh needs the axis {axis!r}, e.g. --mesh {example}")
    if not family.fits(mesh):
        square = dict.fromkeys(mesh, min(mesh.values()))
        raise CaseError(f"{where}: the mesh {sizes_text(mesh)} is not square; {sizes_text(square)} would work")


def check_pairs(family: Family, variant: Variant, dims: Mapping[str, int]) -> None:
    """Raise CaseError where RoPE, which turns pairs of a head's features, finds an odd number of them."""
    if variant.options.get("rope_theta") is not None and dims["E"] % 2:
        where = f"{family.layer}/{family.plan}/{variant.name}"
        raise CaseError(f"{where}: RoPE turns pairs of features, E={dims['E']} is odd; E={dims['E'] + 1} would work")


def check_divisible(family: Family, dims: Mapping[str, int], mesh: Mapping[str, int]) -> None:
    """Raise CaseError for a dim that is not a multiple of what it has to be, or of a mesh that fits the family."""
    tensors = {**family.tensors, **family.inside}
    layouts = {name: parse_layout(text) for name, text in tensors.items()}
    where = f"{family.layer}/{family.plan}"
    for letter, of in family.multiples.items():
        if dims[letter] % dims[of]:
            below = dims[letter] // dims[of] * dims[of]
            fits = " or ".join(str(size) for size in (below, below + dims[of]) if size)
            raise CaseError(
                f"{where}: {of}={dims[of]} does not divide {letter}={dims[letter]}; {letter}={fits} would work"
            )
    for name, layout in layouts.items():
        for dim in layout:
            ways, size = math.prod(mesh[axis] for axis in dim.axes), evaluate(dim.sharded, dims)
            if size % ways:
                below = size // ways * ways
                sizes = " or ".join(str(fits) for fits in (below, below + ways) if fits)
                raise CaseError(
                    f"{where}: {'x'.join(dim.axes)}={ways} does not divide {dim.sharded}={size} of {name}"
                    f" [{tensors[name]}]; {dim.sharded}={sizes} would work"
                )
