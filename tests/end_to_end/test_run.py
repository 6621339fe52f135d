"""The command as people use it: a run, its files, comparing again without a framework, resuming, bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from parity.compare import compare
from parity.files_contract import load_arrays
from parity.rundir import read_run

ARGUMENTS = ["run", "linear/row_parallel/bias/*", "mlp/megatron/relu/manual", "--mesh", "tp=2", "--dtype", "float64"]
# An interpreter in which neither framework, nor the packages that need one, can be imported.
WITHOUT_FRAMEWORKS = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "jax", "jaxlib", "flax"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from parity.cli import main
main()
"""


def parity(*arguments: str, prefix: tuple[str, ...] = ("-m", "parity.cli")) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, *prefix, *arguments], capture_output=True, text=True, env=environment, check=False
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "out"
    done = parity(*ARGUMENTS, "--dtype", "exact-float32", "--out", str(directory))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 pass" in done.stdout
    return directory


def test_comparison_holds_what_it_promises(run):
    comparison = json.loads((run / "comparison.json").read_text())
    assert comparison["schema_version"] == 2
    assert comparison["summary"] == {"pass": 8, "fail": 0, "error": 0, "skip": 0}
    assert comparison["environment"]["torch"]["float32_matmul_precision"] == "highest"
    assert comparison["environment"]["jax"]["default_matmul_precision"] == "highest"
    for case in comparison["cases"]:
        ledgers = case["collectives"]
        for entry in [*ledgers["torch"], *ledgers["jax"], *ledgers["expected"]]:
            assert {"kind", "axis", "dtype", "payload_bytes", "count", "pass"} <= set(entry)
        exact = "exact" in case["id"]
        for tensor, figures in case["numerics"].items():
            for framework in ("torch", "jax"):
                error = figures[framework]["error_in_bounds"]
                assert error == 0 if exact or tensor in ("x", "w", "b") else error < 1
        for framework, backend in (("torch", "gloo"), ("jax", "xla")):
            timing = case["timing"][framework]
            assert timing["cold_s"] > 0
            assert timing["steady_s"] > 0
            assert (timing["device"], timing["backend"]) == ("cpu", backend)


def test_rounding_is_really_seen_in_float64(run):
    """A checker that compared nothing, or rounded first, would report no error at all."""
    comparison = json.loads((run / "comparison.json").read_text())
    errors = [
        figures[framework]["error_in_bounds"]
        for case in comparison["cases"]
        if case["id"].endswith("/float64")
        for figures in case["numerics"].values()
        for framework in ("torch", "jax")
    ]
    assert max(errors) > 0.01


def test_compares_again_without_any_framework(run):
    before = json.loads((run / "comparison.json").read_text())
    again = parity("compare", str(run), prefix=("-c", WITHOUT_FRAMEWORKS))
    assert again.returncode == 0, again.stderr
    assert json.loads((run / "comparison.json").read_text()) == before


@pytest.mark.parametrize("num_processes", [1, 3])
def test_processes_share_the_comparing_and_change_nothing(run, num_processes):
    before = json.loads((run / "comparison.json").read_text())
    heard: list[str] = []
    again = compare(read_run(run), None, lambda entry: heard.append(entry["id"]), num_processes)
    assert json.loads(json.dumps(again)) == before
    assert sorted(heard) == sorted(case["id"] for case in before["cases"])


def test_some_cases_are_shown_in_full_and_the_comparison_stays_as_it_is(run):
    before = (run / "comparison.json").read_bytes()
    shown = parity("compare", str(run), "mlp/megatron/relu/manual")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("mlp/megatron/relu/manual/tp2/") == 2
    assert shown.stdout.count(": pass") == 2
    assert shown.stdout.count("2,880 x 1") >= 6  # both passes, in each ledger: the formula, torch, jax
    assert (run / "comparison.json").read_bytes() == before
    assert parity("compare", str(run), "mlp/nothing").returncode == 2


def test_resume_does_only_what_is_left(run):
    """The last result of rank 1 is cut off, as a crash would leave it: that case runs again, and no other."""
    log = run / "torch" / "rank1.jsonl"
    whole = log.read_text()
    kept = whole.splitlines(keepends=True)
    log.write_text("".join(kept[:-1]) + kept[-1][:40])
    done = parity("run", "--resume", str(run))
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in log.read_text().splitlines()[len(kept) - 1 :]]
    assert [event["event"] for event in events] == ["hello", "start", "result"]
    assert json.loads(kept[-1])["results"][0]["case"] == events[-1]["results"][0]["case"]


def test_jax_runs_in_a_process_a_device_too(run, tmp_path):
    """As on GPUs: the same numbers to the bit, in arrays of two processes that gloo connects."""
    arguments = ("run", "mlp/megatron/relu/manual", "--mesh", "tp=2", "--dtype", "float64", "--process-a-device")
    done = parity(*arguments, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert comparison["environment"]["jax"]["num_processes"] == 2
    assert comparison["cases"][0]["timing"]["jax"]["backend"] == "gloo"
    for rank in range(2):
        assert len((tmp_path / "out" / "jax" / f"rank{rank}.jsonl").read_text().splitlines()) == 3
        name = f"mlp.megatron.relu.manual.tp2.float64.rank{rank}.safetensors"
        mine, theirs = (load_arrays(each / "jax" / "arrays" / name) for each in (run, tmp_path / "out"))
        assert {key: value.tobytes() for key, value in mine.items()} == {k: v.tobytes() for k, v in theirs.items()}


BAD_INPUT = {
    ("run", "nothing/like/this"): "no case matches 'nothing/like/this'",
    ("run", "--mesh", "tp=5"): "tp=5 does not divide F=36 of y [B S F@tp]; F=35 or 40 would work",
    ("run", "--mesh", "xy=2"): "the mesh axis 'xy' is unknown",
    ("run", "--mesh", "tp"): "--mesh 'tp': expected NAME=SIZE",
    ("run", "--dims", "F=37", "--mesh", "tp=2"): "F=36 or 38 would work",
    ("run", "--dtype", "float16"): "--dtype 'float16': there are",
    ("run", "--suite", "tiny"): "--suite 'tiny': there are",
    ("run", "--device", "tpu"): "--device 'tpu': there are cpu, cuda",
    ("run", "--torch-python", "/no/such/python"): "--torch-python",
    ("compare", "/no/such/run"): "error: /no/such/run is not the directory of a run: there is no run.json\n",
    ("show", "linear/diagonal"): "no case matches 'linear/diagonal'",
}


@pytest.mark.parametrize("arguments", BAD_INPUT, ids=" ".join)
def test_bad_input_is_one_line_and_exit_code_2(arguments, tmp_path):
    out = ("--out", str(tmp_path / "run")) if arguments[0] == "run" else ()
    done = parity(*arguments, *out)
    assert done.returncode == 2
    assert BAD_INPUT[arguments] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_interpreter_without_the_framework_says_what_to_install(tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    done = parity("run", "--jax-python", str(bare / "bin" / "python"), "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "pip install" in done.stderr
    assert "--jax-python" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda run: {**run, "schema_version": 99}, "schema version 99"),
        (lambda run: {key: value for key, value in run.items() if key != "schema_version"}, "is damaged"),
        (lambda run: {**run, "cases": [{"id": "x"}]}, "lacks or has an unknown field"),
    ],
)
def test_run_of_another_schema_is_refused(run, tmp_path, damage, says):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "run.json").write_text(json.dumps(damage(json.loads((run / "run.json").read_text()))))
    done = parity("compare", str(copy))
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_out_that_holds_a_run_is_not_overwritten(run):
    done = parity(*ARGUMENTS, "--out", str(run))
    assert done.returncode == 2
    assert "holds a run already" in done.stderr


@pytest.mark.parametrize("command", ["list", "show"])
def test_cases_can_be_listed_and_shown_without_any_framework(command):
    done = parity(command, "mlp/megatron/gelu_erf/manual", prefix=("-c", WITHOUT_FRAMEWORKS))
    assert done.returncode == 0, done.stderr
    assert ("all_reduce B*S*D" if command == "list" else "torch_tp/mlp.py") in done.stdout
