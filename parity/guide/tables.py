"""The guide's tables, from the data beside this file: what is called what, which defaults differ, the lessons."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from rich.markup import escape
from rich.table import Table

from parity.contract import FRAMEWORKS, ContractError
from parity.guide.differences import DIFFERENCES
from parity.guide.source import package_folder, side_by_side


def read_table(name: str) -> list[dict[str, Any]]:
    """The rows of concepts.toml or defaults.toml."""
    rows: list[dict[str, Any]] = tomllib.loads(files("parity.guide").joinpath(f"{name}s.toml").read_text())[name]
    return rows


def concepts() -> Table:
    """What is called what."""
    rows = read_table("concept")
    names = [("\n".join(map(short, row["torch"])), "\n".join(map(short, row["jax"]))) for row in rows]
    cells = ((row["name"], *pair, row["note"]) for row, pair in zip(rows, names, strict=True))
    return table_of(("concept", "PyTorch", "JAX, Flax NNX", ""), cells)


def defaults() -> Table:
    """Where the same line means something else."""
    cells = ((row["what"], row["torch"], row["jax"], row["here"]) for row in read_table("default"))
    return table_of(("by default", "PyTorch", "JAX, Flax NNX, Optax", "in this project"), cells)


def lessons() -> Table:
    """The lessons, with the first lines of their docstrings."""
    paths = sorted(package_folder("torch").joinpath("examples").glob("e[0-9]*.py"))
    titles = ((ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0] for path in paths)
    cells = ((f"{{torch,jax}}_tp.examples.{path.stem}", title) for path, title in zip(paths, titles, strict=True))
    return table_of(("module", "lesson"), cells)


def differences() -> Table:
    """Where the two packages differ in names, and why."""
    cells = ((row.file, row.name, row.torch, row.jax, row.reason) for row in DIFFERENCES)
    return table_of(("file", "name", "PyTorch", "JAX", "why"), cells)


def pair_of_concept(name: str) -> Table:
    """The pair of functions that a concept points to. Raises ContractError for a concept that is not there."""
    rows = {row["name"]: row for row in read_table("concept")}
    if name not in rows:
        raise ContractError(f"no concept {name!r}: there are {', '.join(rows)}")
    file, *names = rows[name]["see"].split()
    return side_by_side(file, dict(zip(FRAMEWORKS, (names * 2)[:2], strict=True)))


def table_of(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    """A table without lines, whose cells wrap, but for the first; long names go on in the next line, whole."""
    table = Table(*titles, pad_edge=False, box=None, header_style="bold")
    table.columns[0].no_wrap = True
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def short(name: str) -> str:
    """A name as it is used: without the modules that it lies in, but for the last."""
    return name if " " in name else ".".join(name.split(".")[-2:])
