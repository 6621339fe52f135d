"""`parity train` with real workers: both frameworks learn, and agree; the files that it leaves."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from parity import cli_common
from parity.cli import app
from parity.curves import MODELS
from parity.curves.noise import SAMPLES


@pytest.mark.timeout(900)
def test_both_frameworks_learn_from_text_and_agree(monkeypatch, tmp_path):
    monkeypatch.setitem(MODELS, "gpt", replace(MODELS["gpt"], sizes={"B": 4, "S": 16}))
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(cli_common, "error_console", terminal)
    out = tmp_path / "run"
    done = CliRunner().invoke(app, ["train", "--tp", "2", "--steps", "16", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "standard library" in done.output
    assert f"{SAMPLES}/{SAMPLES}" in terminal.file.getvalue()  # the bar while it is judged
    found = json.loads((out / "curves.json").read_text())
    assert found["verdict"] == "pass"
    assert found["findings"] == []
    # Float32 errs, and the bounds are as narrow as to see a learning rate that is a thousandth off.
    assert min(found["errors"][framework]["loss"] for framework in ("torch", "jax")) > 0
    assert min(found["control"].values()) > 1
    assert found["curves"]["torch"]["loss"] != found["reference"]["loss"]
    assert {path.name for path in out.glob("curves.*")} == {"curves.json", "curves.png", "curves.svg"}
    # A second run does not overwrite the first.
    again = CliRunner().invoke(app, ["train", "--tp", "2", "--steps", "16", "--out", str(out)])
    assert again.exit_code == 2
