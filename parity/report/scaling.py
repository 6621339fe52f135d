"""Tables and a plot of the bytes that each plan communicates and holds per GPU as the mesh grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

MARKERS = {"megatron": "o", "sequence_parallel": "x", "summa": "s", "cannon": "^", "gathered": "D", "stationary": "v"}


def print_curves(console: Console, curves: Sequence[Any], dims: Mapping[str, int]) -> None:
    """Print `parity.scaling.Curve`s: MiB received per GPU, the fitted slopes, and whether the traces agree."""
    sizes = ", ".join(f"{name}={size:,}" for name, size in dims.items())
    title = (
        f"MiB received a GPU; y = (x w_1) w_2 forward and backward, bfloat16\n{sizes}; slope: of log MiB over log p,\n"
        "last: between the last two; of what all GPUs receive together it is 1 more"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("plan", no_wrap=True)
    for p in curves[0].gpus:
        table.add_column(f"p={p}", justify="right", no_wrap=True)
    for heading in ("slope", "last", "traced"):
        table.add_column(heading, justify="right", no_wrap=True)
    for curve in curves:
        mib = [float(value) / 2**20 for value in curve.closed]
        cells = [f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" for value in mib]
        slopes = [f"{slope:+.2f}" for slope in (curve.slope(), curve.slope(2))]
        table.add_row(curve.plan, *cells, *slopes, "[red]differs[/]" if curve.differs else "equal")
    console.print(table)
    for line in [line for curve in curves for line in curve.differs]:
        console.print(line, soft_wrap=True, highlight=False)


def print_crossovers(
    console: Console, found: Mapping[str, Sequence[Fraction | None]], gpus: Sequence[int], lines: Sequence[str]
) -> None:
    """Print, for each 2D plan, the ratio M/D (tokens over width) above which it receives less than 1D."""
    title = "M/D (tokens over width) from which on 2D receives less than 1D"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("plan", no_wrap=True)
    for p in gpus:
        table.add_column(f"{p} GPUs", justify="right", no_wrap=True)
    for plan, values in found.items():
        cells = ["never" if value is None else "always" if value == 0 else f"{float(value):.2f}" for value in values]
        table.add_row(plan, *cells)
    console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def print_temporaries(
    console: Console,
    held: Mapping[str, Mapping[str, Sequence[int | None]]],
    sides: Sequence[int],
    block: int,
    panel: int,
) -> None:
    """Print `held`: framework -> plan -> bytes on grids of these sides, None where the framework gave no answer."""
    title = (
        f"MiB held a GPU beside the blocks of x, w and y: y = x w forward, blocks of {block} x {block} bfloat16 "
        f"({2 * block**2 / 2**20:g} MiB)\nwhatever the grid; summa in panels of {panel}"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("plan", no_wrap=True)
    table.add_column("framework", no_wrap=True)
    for q in sides:
        table.add_column(f"{q} x {q}", justify="right", no_wrap=True)
    for plan in next(iter(held.values())):
        for framework, plans in held.items():
            sizes = ("-" if value is None else f"{value / 2**20:,.2f}" for value in plans[plan])
            table.add_row(plan, framework, *sizes)
    console.print(table)


def plot_curves(curves: Sequence[Any], dims: Mapping[str, int], path: Path) -> None:
    """Plot the bytes received per GPU over the number of GPUs, log-log: lines are the formula, rings the traces."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for curve in curves:
        values = [float(value) / 2**20 for value in curve.closed]
        style = "--" if curve.plan == "sequence_parallel" else "-"
        label = f"{curve.plan}: slope {curve.slope():+.2f}, last two {curve.slope(2):+.2f}"
        (line,) = axes.plot(curve.gpus, values, style, marker=MARKERS[curve.plan], label=label)
        for traced, size in zip(curve.traced.values(), (12, 16), strict=False):
            points = [float(value) / 2**20 for value in traced]
            axes.plot(curve.gpus, points, "o", markersize=size, fillstyle="none", color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(curves[0].gpus, [str(p) for p in curves[0].gpus])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("GPUs")
    axes.set_ylabel("MiB received a GPU")
    axes.set_title(f"y = (x w1) w2, forward and backward: M={dims['M']:,}, D={dims['D']:,}, F={dims['F']:,}, bfloat16")
    axes.grid(which="both", alpha=0.3)
    axes.legend(title="lines: formula; rings: traced in PyTorch and JAX", fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)
