"""The cases as data, and the suites that are made of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import replace

from parity.cases import (
    attention,
    block,
    cross_entropy,
    dropout,
    embedding,
    grid_block,
    grid_layers,
    grid_matmul,
    grid_models,
    hybrid,
    linear,
    mlp,
    models,
    norm,
    swiglu,
    tied,
    vit,
)
from parity.cases.family import NUMERICS, TRAINING, CaseError, Family, Selection, cases_of, check_mesh
from parity.contract import Case

FAMILIES: tuple[Family, ...] = (
    *linear.FAMILIES,
    *mlp.FAMILIES,
    *attention.FAMILIES,
    *norm.FAMILIES,
    *swiglu.FAMILIES,
    *embedding.FAMILIES,
    *cross_entropy.FAMILIES,
    *dropout.FAMILIES,
    *grid_matmul.FAMILIES,
    *grid_layers.FAMILIES,
    *grid_block.FAMILIES,
    *grid_models.FAMILIES,
    *block.FAMILIES,
    *tied.FAMILIES,
    *models.FAMILIES,
    *vit.FAMILIES,
    *hybrid.FAMILIES,
)

# Even and odd sides, and sides that differ; in LINES there is nothing to send along one of the axes.
GRIDS = tuple({"x": x, "y": y} for x, y in ((2, 2), (2, 4), (3, 3)))
LINES = tuple({"x": x, "y": y} for x, y in ((1, 4), (4, 1)))
# Data parallelism over nodes, tensor parallelism within them: squares, then 2 x 4.
HYBRIDS = tuple({axis: 2, "tp": tp} for tp in (2, 4) for axis in ("dp", "fsdp"))
GRID_HYBRIDS = tuple({axis: 2, "x": 2, "y": 2} for axis in ("dp", "fsdp"))
# Keys that two devices share, and keys of one device each.
SHARED_KEYS = ({"kv": 2, "rep": 2}, {"kv": 2, "rep": 1})

# The options of the standard suite: one or two of each layer.
TYPICAL = (
    "bias",
    "gelu_erf",
    "relu",
    "layer_norm",
    "rms_norm",
    "separate",
    "packed_bias",
    "padded",
    "padded_vocabulary",
    "label_smoothing",
    "half",
    "panel5",
    "plain",
    "one_table",
    "multi_head",
    "grouped_causal_rope",
    "contiguous",
    "per_head_grouped_causal_rope",
    "replicated_causal_rope",
    "gpt",
    "bert",
    "llama",
)

# A suite is the union of selections. A family takes those meshes of a selection that have its axes.
SUITES: dict[str, tuple[Selection, ...]] = {
    # The linear layer and the MLP in every style, in float64 and with exact operands: a minute.
    "smoke": (
        Selection(
            meshes=({"tp": 4},),
            numerics=("float64", "exact-float32"),
            variants=("bias", "gelu_erf", "relu"),
            plans=("column_parallel", "row_parallel", "megatron"),
        ),
    ),
    # Every layer, plan and style (of whole models only some) where the axis has one neighbour and where it has several.
    # Every kind of numbers on the fewest processes, since each compiles for itself; exact operands in bfloat16, as its
    # program is there already.
    "standard": (
        Selection(
            meshes=({"tp": 2}, SHARED_KEYS[0], *HYBRIDS[:2]),
            numerics=("float64", "bfloat16", "exact-bfloat16"),
            variants=TYPICAL,
        ),
        Selection(meshes=({"tp": 4},), numerics=("float64", "train-float64"), variants=TYPICAL),
        # Dropout where it is most of all: of whole heads, of own tokens, each layer by a number of its own.
        Selection(meshes=({"tp": 2},), numerics=("float64",), variants=("gpt2_dropout",), plans=("sequence_parallel",)),
        # Float32 where sums are long and functions elementary; a language model whole.
        Selection(
            meshes=({"tp": 2},),
            numerics=("float32",),
            variants=("gelu_erf", "multi_head", "grouped_causal_rope", "gpt", "llama", "label_smoothing"),
            plans=("megatron", "vocab_parallel"),
            layers=("mlp", "attention", "cross_entropy", "block"),
        ),
        Selection(
            meshes=({"tp": 2},),
            numerics=("float64",),
            variants=("gpt2", "llama3"),
            plans=("megatron",),
            layers=("models.*",),
        ),
        # Parameters that lie over both axes and others that lie over one, clipped together.
        Selection(meshes=HYBRIDS[1:2], numerics=("train-float64",), variants=("llama",), layers=("hybrid.block",)),
        # On grids the product by every algorithm, and blocks; the other layers and models of the grid are in "full".
        Selection(
            meshes=GRIDS[:1],
            numerics=("float64", "bfloat16", "exact-bfloat16"),
            variants=TYPICAL,
            layers=("grid.matmul",),
        ),
        Selection(
            meshes=GRIDS[:1],
            numerics=("float64", "bfloat16"),
            variants=("gpt", "llama"),
            plans=("summa",),
            layers=("grid.block",),
        ),
        Selection(meshes=GRIDS[:1], numerics=("float64",), variants=("gpt",), plans=("stationary", "cannon")),
        # Sides that differ, odd ones, and of one device; with exact operands too.
        Selection(
            meshes=(*GRIDS[1:], *LINES),
            numerics=("float64", "exact-float32"),
            variants=("panel5", "plain"),
            plans=("summa", "cannon", "gathered", "stationary"),
            layers=("grid.matmul",),
        ),
        Selection(
            meshes=GRIDS[1:], numerics=("float64",), variants=("llama",), plans=("summa",), layers=("grid.block",)
        ),
    ),
    # Everything, on one device and on an odd number of them too.
    "full": (
        Selection(
            meshes=({"tp": 1}, {"tp": 2}, {"tp": 3}, {"tp": 4}, *GRIDS, *LINES, *SHARED_KEYS, *HYBRIDS, *GRID_HYBRIDS),
            numerics=(*NUMERICS, *TRAINING),
        ),
    ),
}


def family_of(case: Case) -> Family:
    """The family that a case belongs to. Raises CaseError for a layer or plan that is not here."""
    for family in FAMILIES:
        if (family.layer, family.plan) == (case.layer, case.plan):
            return family
    raise CaseError(f"{case.id}: there is no plan {case.layer}/{case.plan}")


def select(suite: Sequence[Selection], globs: Sequence[str] = ()) -> list[Case]:
    """The cases of a suite whose ids match one of the globs (none: all). Raises CaseError for a glob without a match.

    A family without a mesh of its axes among those selected has no cases; a mesh that suits no family is refused.
    """
    families = list(_matching_families(globs))
    meshes = [mesh for selection in suite for mesh in selection.meshes]
    unknown = [mesh for mesh in meshes if not any(family.fits(mesh) for family in FAMILIES)]
    if not any(family.fits(mesh) for family in families for mesh in meshes):
        unknown += meshes
    if families and unknown:
        check_mesh(families[0], unknown[0])
    found = (case for family in families for selection in suite for case in cases_of(family, selection))
    cases = list({case.id: case for case in found}.values())
    if not cases and not globs:
        raise CaseError("no case has all of what is asked for (suite, mesh, dtype): `parity list` shows what there is")
    for letter in {letter for selection in suite for letter in selection.dims or {}}:
        if not any(letter in case.dims for case in cases):
            raise CaseError(f"no case that is asked for has a dim {letter!r}; `parity list` shows their layouts")
    if not globs:
        return cases
    for glob in globs:
        if not any(matches(case.id, glob) for case in cases):
            raise CaseError(f"no case matches {glob!r}; `parity list` shows them, e.g. {example(suite)}")
    return [case for case in cases if any(matches(case.id, glob) for glob in globs)]


def matches(case_id: str, glob: str) -> bool:
    """Whether the id, or the id up to one of its slashes, matches: `mlp` and `mlp/*/gelu*` take all that lies below."""
    words = case_id.split("/")
    return any(fnmatch.fnmatchcase("/".join(words[:n]), glob) for n in range(1, len(words) + 1))


def example(suite: Sequence[Selection]) -> str:
    """The id of some case, for messages."""
    plain = (replace(selection, dims=None) for selection in suite)
    return next(case.id for selection in plain for family in FAMILIES for case in cases_of(family, selection))


def _matching_families(globs: Sequence[str]) -> Iterator[Family]:
    """Those that a glob can mean: a mesh that does not suit another family is then no error."""
    for family in FAMILIES:
        heads = [glob.split("/") for glob in globs]
        if not globs or any(_head_matches(family, head) for head in heads):
            yield family


def _head_matches(family: Family, head: list[str]) -> bool:
    names = (family.layer, family.plan)
    return all(fnmatch.fnmatchcase(name, pattern) for name, pattern in zip(names, head, strict=False))
