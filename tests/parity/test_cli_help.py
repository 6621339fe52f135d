"""What `--help` shows in a terminal of 80 columns: every default, whole, and nothing that Python would write."""

from __future__ import annotations

import re
import sys

import pytest
import typer
from typer.testing import CliRunner

from parity.cli import app

COMMANDS = typer.main.get_command(app).commands


def help_of(*words: str, width: int = 80) -> str:
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": str(width), "TERMINAL_WIDTH": str(width)})
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize("words", [*([name] for name in COMMANDS), ["bench", "grid"]], ids=" ".join)
def test_help_shows_defaults_whole(words):
    text = help_of(*words)
    assert "…" not in text
    assert "{'" not in text
    assert not re.search(r" \.\s", text)  # what is left of "[default: ...]." in a help text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "[[" not in text


@pytest.mark.parametrize("name", [name for name in COMMANDS if "--torch-python" in help_of(name)])
def test_help_says_this_interpreter_and_not_where_it_is(name):
    text = help_of(name)
    assert text.count("[default: (this one)]") == 2
    assert sys.executable not in text


def test_help_says_which_directory():
    text = help_of("run")
    assert "[default: (runs/<time>)]" in text


def test_paragraphs_of_help_are_wrapped_as_a_whole():
    """A line that ends where the docstring's did leaves the next ones ragged."""
    lines = [line.strip() for line in help_of("train").splitlines()]
    begin = next(index for index, line in enumerate(lines) if line.startswith("Both get the same state"))
    paragraph = lines[begin : lines.index("", begin)]
    assert len(paragraph) == 4
    assert all(len(line) > 60 for line in paragraph[:-1])


@pytest.mark.parametrize("command", ["predict", "advise"])
def test_help_claims_no_plan_that_a_vit_has_not(command):
    text = " ".join(help_of(command, width=200).split())
    assert "megatron (default)" not in text
    assert "the model's own first" in text
