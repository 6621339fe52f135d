"""JAX's ledger comes from the compile for A100s: true to bfloat16, which the CPU compile is not; `skip` without it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from real_runs import GOOD, run_cases

from parity.cases import SUITES, select

CASE = "linear/row_parallel/bias/manual/tp2/bfloat16"


@pytest.fixture(scope="module")
def cases():
    return select([replace(SUITES["full"][0], meshes=({"tp": 2},))], [CASE])


def payload(ledger):
    return {(entry["kind"], entry["dtype"]): entry["payload_bytes"] for entry in ledger}


def test_a100_compile_keeps_bfloat16_and_the_cpu_compile_widens_it(cases, tmp_path):
    ledgers = run_cases(tmp_path / "run", cases).case(CASE)["collectives"]
    num_elements = 3 * 5 * 36
    assert payload(ledgers["jax"]) == {("all_reduce", "bfloat16"): 2 * num_elements}
    assert payload(ledgers["jax_on_this_device"]) == {("all_reduce", "float32"): 4 * num_elements}


def test_without_the_plugin_the_ledger_is_a_skip_that_says_what_to_install(cases, tmp_path):
    worker = (sys.executable, str(Path(__file__).parent / "without_plugin_worker.py"))
    finished = run_cases(tmp_path / "run", cases, {**GOOD, "jax": worker})
    entry = finished.case(CASE)
    assert entry["verdict"] == "skip"
    assert "jax collectives not judged: the CUDA plugin of jax" in entry["reason"]
    assert "pip install 'tp-parity[a100]'" in entry["reason"]
    assert finished.comparison["summary"] == {"pass": 0, "fail": 0, "error": 0, "skip": 1}
