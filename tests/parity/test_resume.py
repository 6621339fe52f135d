"""`parity run --resume`: what was given up runs again, but a resume that is refused changes nothing of the run."""

from __future__ import annotations

import ctypes

import pytest
import typer
from typer.testing import CliRunner

from parity import cli
from parity.cases import SUITES, select
from parity.files_contract import EventLog
from parity.group_logs import done_cases
from parity.run import Manner, start_run
from parity.rundir import read_run

WHY = "rank 1 was killed"
(CASE,) = select(SUITES["full"], ["mlp/megatron/relu/manual/tp2/float64"])


@pytest.fixture
def given_up(tmp_path, monkeypatch):
    """A run whose only case both frameworks were given up on, on GPUs that are not there."""

    def no_driver(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    return tmp_path


def begin(directory, device):
    start_run(directory, [CASE], Manner(device).settings)
    for framework in ("torch", "jax"):
        log = EventLog(directory / framework / "launcher.jsonl")
        log.append("error", role="ranks", case=CASE.id, message=WHY)


@pytest.mark.parametrize(
    ("device", "options", "says"),
    [
        ("cuda", [], "the driver finds none here"),
        ("cpu", ["--jax-python", "/nowhere/python"], "no Python interpreter '/nowhere/python'"),
        ("cpu", ["--dtype", "float64"], "--resume does what is left of a run"),
    ],
    ids=["no GPU", "no interpreter", "other options"],
)
def test_refused_resume_keeps_why_cases_were_given_up(given_up, device, options, says):
    begin(given_up, device)
    done = CliRunner().invoke(cli.app, ["run", "--resume", str(given_up), *options])
    assert done.exit_code == 2
    assert says in done.stderr
    for answers in read_run(given_up).answers.values():
        assert answers.errors == {("ranks", CASE.id): WHY}


def test_resume_runs_again_what_was_given_up(given_up, monkeypatch):
    begin(given_up, "cpu")
    seen = []

    def look(directory, cases, commands, manner):
        seen.extend(done_cases(directory, name, "ranks", 2) for name in commands)
        raise typer.Exit(0)

    monkeypatch.setattr(cli, "run_groups", look)
    assert [done_cases(given_up, name, "ranks", 2) for name in ("torch", "jax")] == [{CASE.id}] * 2
    CliRunner().invoke(cli.app, ["run", "--resume", str(given_up)])
    assert seen == [set(), set()]
