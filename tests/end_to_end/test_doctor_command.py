"""`parity doctor` on this machine, from the shell: both frameworks are asked, the exit code tells of problems."""

from __future__ import annotations

import json
import os
import subprocess
import sys

DOCTOR = (sys.executable, "-m", "parity.cli", "doctor", "--json")


def doctor(*arguments, **variables):
    environment = {**os.environ, "no_proxy": "", **variables}
    done = subprocess.run([*DOCTOR, *arguments], capture_output=True, text=True, timeout=240, env=environment)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_both_frameworks_say_what_they_would_do():
    ranks = {"PMI_RANK": "1", "PMI_SIZE": "2", "PALS_LOCAL_RANKID": "1"}
    code, content = doctor(**ranks, TORCH_ALLOW_TF32_CUBLAS_OVERRIDE="1", http_proxy="http://127.0.0.1:9")
    told = [one["what"] for one in content["findings"]]
    assert "torch: float32 products are high (TF32 on A100s) by default, highest in workers" in told
    assert "jax: float32 products are None (TF32 on A100s) by default, highest in workers" in told
    assert "PALS or MPICH: rank 1 of 2; mesh.py of both sides reads it" in told
    assert any(what.startswith("http_proxy is set, 127.0.0.1 not excepted") for what in told)
    problems = [one for one in content["findings"] if one["level"] == "problem"]
    assert content["summary"]["problem"] == len(problems)
    assert code == bool(problems)


def test_interpreter_that_is_missing_is_a_problem():
    code, content = doctor("--torch-python", "/nowhere/python", "--jax-python", "/nowhere/python")
    assert code == 1
    assert [one["what"] for one in content["findings"][:2]] == ["no Python interpreter '/nowhere/python'"] * 2
    assert [one["do"][-14:] for one in content["findings"][:2]] == ["--torch-python", "h --jax-python"]
