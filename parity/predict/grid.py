"""Steps of 2D tensor parallelism, on a mesh (dp x) x, y: which model has them, by which algorithm, what x and y cut.

The algorithm is the plan: `summa` unless `stationary` is named. A ViT's plan of the cases names its task too.
Beside a grid steps are traced with dp alone: of fsdp (`hybrid`) no closed formula of a whole step is checked yet.

SUMMA's panels are fetched one ahead. In PyTorch's trace they all count as awaited, since functional collectives are
awaited at once under a fake group; of XLA's, those that its schedule puts beside work count as hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from parity.presets import FAMILIES, Preset
from parity.sizes import sizes_text

if TYPE_CHECKING:
    from parity.predict.request import Question

AXES = ("x", "y")
ALGORITHMS = ("summa", "stationary")
STYLE = "manual"  # the one that the grid's layers have


def grid_layer(preset: Preset) -> str | None:
    """The model made of the grid's layers, None where there is none."""
    layer = f"grid.{preset.layer}"
    return layer if layer in FAMILIES else None


def grid_models() -> str:
    """Those that there are, in words."""
    return ", ".join(name.removeprefix("grid.models.") for name in FAMILIES if name.startswith("grid."))


def case_plan(preset: Preset, algorithm: str) -> str:
    """The plan as the cases call it."""
    return f"{preset.family.plan}_{algorithm}" if preset.layer == "models.vit" else algorithm


def grid_of(gpus: int) -> dict[str, int]:
    """So many GPUs as a grid, as near to a square as it goes, the longer side innermost."""
    x = max(side for side in range(1, int(gpus**0.5) + 1) if gpus % side == 0)
    return {"x": x, "y": gpus // x}


def why_no_grid(mesh: Mapping[str, int], preset: Preset) -> str:
    """Why this model has no step on this mesh, which has x or y, in one line; or nothing."""
    where = f"mesh {sizes_text(mesh)}"
    if unknown := [axis for axis in mesh if axis not in ("dp", *AXES)]:
        return f"{where}: beside a grid x, y steps are traced with dp alone, not {unknown[0]}"
    if tuple(mesh)[-2:] != AXES:
        return f"{where}: a grid needs x and y, and they must be the last axes, in this order"
    if grid_layer(preset) is None:
        ways = mesh["x"] * mesh["y"]
        return f"{where}: {preset.layer} has no form on a grid, {grid_models()} have; take tp={ways}"
    return ""


def hidden_axis(algorithm: str) -> str:
    """What cuts the columns of weights into hidden features, and so the heads."""
    return "x" if algorithm == "stationary" else "y"


def cuts(question: Question) -> Iterator[tuple[str, int, str]]:
    """What is cut, its size, and the axis that cuts it; tables are padded."""
    dims, is_stationary = question.preset.dims, question.plan == "stationary"
    into = hidden_axis(question.plan)
    out = "y" if into == "x" else "x"
    for axis in AXES:
        for letter, what in (("D", "features"), ("F", "MLP features")):
            yield f"{dims[letter]} {what}", dims[letter], axis
        yield f"{dims['H']} heads of {dims['E']}", dims["H"] * (1 if axis == into else dims["E"]), axis
    yield f"{dims['K']} key and value heads", dims["K"], into
    if "P" in dims:
        patch = dims["C"] * dims["P"] ** 2
        yield f"{patch} numbers of a patch", patch, "x"
        if "V" not in dims:  # the head gives them
            yield f"{patch} numbers of a patch", patch, into
    part = question.batch // question.size(("dp",))
    for axis in ("x", "y") if is_stationary else (out,):
        yield f"{part} sequences of a data-parallel part", part, axis


def undivided(question: Question) -> str:
    """The first thing that x or y do not divide, in one line, or nothing."""
    for what, size, axis in cuts(question):
        if size % question.mesh[axis]:
            return f"{question.preset.name}: {what} do not divide over {axis}={question.mesh[axis]}"
    return ""
