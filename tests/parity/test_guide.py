"""The guide names what is there: functions of both packages, lessons, and every row of its tables in what it prints."""

from __future__ import annotations

import pytest
from rich.console import Console
from typer.testing import CliRunner

from parity.cli import app
from parity.contract import ContractError
from parity.guide import tables
from parity.guide.source import classes, definition, package_folder

CONCEPTS = tables.read_table("concept")


def text_of(table) -> str:
    console = Console(width=400, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize("row", CONCEPTS, ids=lambda row: row["name"])
def test_every_concept_shows_a_pair_of_functions_that_is_there(row):
    shown = text_of(tables.pair_of_concept(row["name"]))
    file, *names = row["see"].split()
    assert f"torch_tp/{file}" in shown
    assert f"jax_tp/{file}" in shown
    for name in names:
        assert f"def {name}" in shown or f"class {name}" in shown


def test_tables_print_every_row_with_its_brackets():
    shown = text_of(tables.concepts()) + text_of(tables.defaults())
    for row in CONCEPTS:
        assert row["note"] in shown
    for row in tables.read_table("default"):
        assert all(row[key] in shown for key in ("what", "torch", "jax", "here"))
    assert text_of(tables.lessons()).count("Lesson ") == 4
    assert "DataParallel.mean_of_means" in text_of(tables.differences())


def test_a_definition_comes_with_its_decorators_and_nothing_else():
    source = "import a\n\n@b\ndef f(x):\n    return x\n\ndef g(): ...\n"
    assert definition(source, "f") == "@b\ndef f(x):\n    return x"
    with pytest.raises(ContractError, match="there is no h in the source"):
        definition(source, "h")
    assert classes((package_folder("torch") / "mlp.py").read_text(), "manual", "megatron")


def test_unknown_concept_is_one_line_and_exit_code_2():
    done = CliRunner().invoke(app, ["guide", "nix"])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: no concept 'nix': there are group, mesh, layout,")
    assert len(done.stderr.splitlines()) == 1
