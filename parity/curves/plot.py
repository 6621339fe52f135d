"""A picture of two trainings: the loss of both frameworks, and how far apart they are beside what rounding explains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parity.curves.judge import CONTROL, Judgement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"torch": "#d55e00", "jax": "#0072b2"}  # safe for the colour-blind


def plot_curves(judgement: Judgement, path: Path) -> None:
    """Write the picture to `path`, in the format that its suffix names (.png, .svg, .pdf)."""
    figure_of(judgement).savefig(path, dpi=130)


def figure_of(judgement: Judgement) -> Figure:
    """Two panels over the steps: the losses, and the differences with their bound, logarithmic."""
    from matplotlib.figure import Figure  # here, as it takes longer to import than most commands do to run

    figure = Figure(figsize=(7.6, 6.4), layout="constrained")
    case = judgement.case
    mesh = " x ".join(f"{axis} {size}" for axis, size in case.mesh.items())
    figure.suptitle(f"{case.layer}, {mesh}, {case.style}, {case.dtype}: {judgement.verdict}")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    steps = np.arange(1, case.recipe["num_steps"] + 1)
    draw_losses(top, judgement, steps)
    draw_differences(bottom, judgement, steps)
    top.set_title(judgement.source, fontsize=8, color="0.35")
    bottom.set(xlabel="step", xlim=(steps[0], steps[-1]))
    for axes in (top, bottom):
        axes.grid(color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_losses(axes: Axes, judgement: Judgement, steps: np.ndarray) -> None:
    """Both curves: a broad one under a narrow one, since one line would hide the other."""
    axes.plot(
        steps, judgement.curves["torch"]["loss"], color=COLOURS["torch"], linewidth=5, alpha=0.45, label="PyTorch"
    )
    axes.plot(steps, judgement.curves["jax"]["loss"], color=COLOURS["jax"], linewidth=1.4, label="JAX")
    axes.set(ylabel="loss: mean cross entropy, nats", ylim=(0, None))
    axes.legend(frameon=False, loc="upper right")


def draw_differences(axes: Axes, judgement: Judgement, steps: np.ndarray) -> None:
    """The two from each other, each from the reference under its bound, and a training that is a little wrong."""
    torch, jax = (judgement.curves[name]["loss"] for name in ("torch", "jax"))
    want, bound = judgement.reference["loss"], judgement.bound["loss"]
    lines = {
        "PyTorch - JAX": (torch - jax, "black", "o-"),
        "PyTorch - reference": (torch - want, COLOURS["torch"], "o:"),
        "JAX - reference": (jax - want, COLOURS["jax"], "o:"),
        f"reference, rate + {CONTROL:.1%}": (judgement.wrong["loss"] - want, "#cc79a7", "--"),
    }
    sizes = [np.abs(difference) for difference, *_ in lines.values()]
    least = min((size[size > 0].min() for size in sizes if (size > 0).any()), default=bound.min() / 10)
    axes.fill_between(steps, least / 10, bound, color="0.9", label="what rounding explains")
    for (label, (_, colour, style)), size in zip(lines.items(), sizes, strict=True):
        shown = np.where(size == 0, np.nan, size)  # nothing to draw where they are equal
        axes.plot(steps, shown, style, color=colour, markersize=2.5, linewidth=1, label=label)
    largest = max(bound.max(), *(size.max() for size in sizes))
    axes.set(yscale="log", ylabel="difference of the loss, nats", ylim=(least / 2, largest * 2))
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8)
