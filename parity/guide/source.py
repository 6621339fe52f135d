"""The classes that a case compares, cut out of the two packages' sources."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from rich.syntax import Syntax
from rich.table import Table

from parity.contract import FRAMEWORKS, Case, ContractError


def source_of_case(case: Case) -> Table:
    """The layer's class in the case's style, PyTorch left and JAX right, with the bases that its file defines."""
    file = file_of(case.layer)
    sources = {name: (package_folder(name) / file).read_text() for name in FRAMEWORKS}
    return columns(file, {name: classes(source, case.style, case.plan) for name, source in sources.items()})


def side_by_side(file: str, names: Mapping[str, str]) -> Table:
    """A function or class of each package's file, by the package's framework."""
    sources = {name: (package_folder(name) / file).read_text() for name in FRAMEWORKS}
    return columns(file, {name: [definition(source, names[name])] for name, source in sources.items()})


def columns(file: str, parts: Mapping[str, list[str]]) -> Table:
    """Parts of the two packages' files of this name beside each other."""
    table = Table(expand=True, show_lines=False, pad_edge=False)
    for framework in parts:
        table.add_column(f"{framework}_tp/{file}", ratio=1, overflow="fold")
    codes = ("\n\n\n".join(code) for code in parts.values())
    table.add_row(*(Syntax(code, "python", word_wrap=True, background_color="default") for code in codes))
    return table


def package_folder(framework: str) -> Path:
    """Where a package is. Raises ContractError if it is not installed here."""
    spec = find_spec(f"{framework}_tp")
    folder = next(iter(spec.submodule_search_locations or []), None) if spec else None
    if folder is None:
        raise ContractError(f"the package {framework}_tp is not installed here: its sources cannot be shown")
    return Path(folder)


def definition(source: str, name: str) -> str:
    """A function or class of a file, from its decorators on."""
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return "\n".join(source.splitlines()[first - 1 : node.end_lineno])
    raise ContractError(f"there is no {name} in the source")


def file_of(layer: str) -> str:
    """A layer's file inside its package: `grid.matmul` is in grid/matmul.py."""
    return f"{layer.replace('.', '/')}.py"


def classes(source: str, style: str, plan: str) -> list[str]:
    """The sources of the classes that `STYLES[style]` names, and of their bases in the same file, bases first.

    Where the style has one class for each direction (column, row), the plan's first word chooses.
    """
    tree = ast.parse(source)
    defined = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    names = _names_of_style(tree, style)
    direction = plan.partition("_")[0].capitalize()
    names = [name for name in names if direction in name] or names
    wanted: list[str] = []

    def add(name: str) -> None:
        if name in defined and name not in wanted:
            for base in defined[name].bases:
                if isinstance(base, ast.Name):
                    add(base.id)
            wanted.append(name)

    for name in names:
        add(name)
    return [ast.get_source_segment(source, defined[name]) or "" for name in wanted]


def _names_of_style(tree: ast.Module, style: str) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["STYLES"]:
            assert isinstance(node.value, ast.Dict)
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == style:
                    return [name.id for name in ast.walk(value) if isinstance(name, ast.Name)]
    raise ContractError(f"no style {style!r} in this layer's STYLES")
