"""`parity calibrate --local` with real workers of both frameworks, and with workers that fail."""

import json
import sys

import pytest
from typer.testing import CliRunner

import parity.calibrate.local
import parity.cli_calibrate
from parity.calibrate.local import combine
from parity.cli import app
from parity.cost import Group, collective_time, load_machine
from parity.question_contract import CollectiveQuestion, Measured

REDUCED = {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "permute"}


def calibrate_here(*words):
    return CliRunner().invoke(app, ["calibrate", "--local", "--ranks", "2", "--json", *words])


@pytest.fixture(autouse=True)
def few_payloads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parity.calibrate.local, "LARGEST_BYTES", {"cpu": 2**14})


def test_each_framework_measures_its_mesh_and_becomes_a_machine(tmp_path):
    done = calibrate_here("--name", "mine")
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    for framework, backend, kinds in (("torch", "gloo", REDUCED | {"broadcast"}), ("jax", "xla", REDUCED)):
        machine = load_machine(tmp_path / f"mine-{framework}.toml")
        assert (tmp_path / f"mine-{framework}.png").exists()
        assert machine.name == f"mine-{framework}"
        assert machine.source.startswith(f"fitted to {framework} ")
        assert f"{backend} on cpu" in machine.source
        assert {curve.kind for curve in machine.curves} == kinds
        assert {curve.gpus for curve in machine.curves} == {2}
        assert figures[framework]["totals"][0]["num_points"] == 5 * len(kinds)
        assert collective_time(machine, "all_reduce", 4096, Group(2)).seconds > 0


@pytest.mark.parametrize("script", ["raise SystemExit('no such driver')", "import os; os.abort()"])
def test_workers_that_die_end_with_one_line_and_exit_code_3(tmp_path, monkeypatch, script):
    command = (sys.executable, "-c", script)
    monkeypatch.setattr(parity.cli_calibrate, "worker_commands", lambda *_: {"torch": command})
    done = calibrate_here()
    assert done.exit_code == 3
    assert done.stderr.count("\n") == 1
    assert "torch, asked all_reduce/2/1024: the group did not start: rank" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_call_takes_as_long_as_its_slowest_rank_and_of_the_calls_the_median_counts():
    asked = [CollectiveQuestion(kind, 2, 1024) for kind in ("all_reduce", "broadcast")]
    times = {asked[0].id: [(1.0, 9.0, 3.0), (7.0, 2.0, 4.0)], asked[1].id: [(), ()]}
    answers = {id_: [Measured(id_, rank, one) for rank, one in enumerate(ranks)] for id_, ranks in times.items()}
    (only,) = combine(asked, answers, "here")
    # The slowest rank of each call: 7, 9, 4. The larger of the ranks' medians would be 4, the median of all 3.5.
    assert (only.kind, only.gpus, only.nodes, only.payload_bytes, only.time_s) == ("all_reduce", 2, 1, 1024, 7.0)
