"""The four lessons print the same text in both packages, to the last digit, whoever starts them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from all_lessons import LESSONS
from test_ranks import free_port, mpiexec_of, without_starter

HERE = Path(__file__).parent


def output(*command: str, **variables: str) -> str:
    """What the command prints; it must end well."""
    meeting = {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    environment = without_starter() | meeting | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def printed() -> dict[str, dict[str, str]]:
    """What both packages print when plain Python starts them, by lesson; all four lessons in one group."""
    path = os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", "")))
    found = {}
    for package in ("torch_tp", "jax_tp"):
        text = output(sys.executable, "-m", "all_lessons", PYTHONPATH=path, LESSONS_OF=package)
        found[package] = dict(part.split("\n", 1) for part in text.split("#")[1:])
    return found


@pytest.mark.parametrize("lesson", LESSONS)
def test_both_packages_print_the_same_text(printed, lesson):
    assert printed["torch_tp"][lesson] == printed["jax_tp"][lesson]
    assert len(re.findall(r"\d\.\d{6}", printed["jax_tp"][lesson])) >= 10  # and it is a text with figures in it


def test_a_lesson_is_a_module_that_mpiexec_starts(printed):
    mpiexec = mpiexec_of("mpich")
    assert (
        output(*mpiexec, "-n", "4", sys.executable, "-m", "jax_tp.examples.e02_mesh") == printed["jax_tp"]["e02_mesh"]
    )


@pytest.mark.parametrize("package", ["torch_tp", "jax_tp"])
@pytest.mark.parametrize("wrong", [2.0 + 1e-11, np.nan])
def test_a_lesson_that_is_off_ends_with_one_line(package, wrong, capsys, monkeypatch):
    common = import_module(f"{package}.examples.common")
    monkeypatch.setattr(common, "say", print)
    common.check({"y": np.array([1.0, 2.0])}, {"y": np.array([1.0, 2.0 + 1e-15])})
    assert capsys.readouterr().out == "    y: as the unsharded reference has them\n"
    with pytest.raises(SystemExit, match=r"^y is off by .* from the unsharded reference, 2e-12 is allowed$"):
        common.check({"y": np.array([1.0, wrong])}, {"y": np.array([1.0, 2.0])})


@pytest.mark.parametrize("package", ["torch_tp", "jax_tp"])
@pytest.mark.parametrize(
    ("variables", "options", "line"),
    [
        ({"RANK": "0", "WORLD_SIZE": "1"}, [], r"^the lessons are for 4 devices, there are 1$"),
        (
            {},
            ["--device", "cuda"],
            r"there are 0: take --device cpu$|^JAX .* finds no cuda device here: take --device cpu$",
        ),
    ],
    ids=["one process", "no GPUs"],
)
def test_too_few_devices_are_refused_in_one_line(package, variables, options, line):
    alone = without_starter() | {"MASTER_PORT": str(free_port()), "CUDA_VISIBLE_DEVICES": ""} | variables
    command = [sys.executable, "-m", f"{package}.examples.e01_basic", *options]
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert re.search(line, done.stderr.splitlines()[-1])  # JAX's CUDA plugin logs more before it


def test_a_lesson_alone_says_nothing_on_stderr():
    """JAX's CUDA plugin, which the extra a100 installs, logs for each of its libraries that it finds no driver."""
    command = [sys.executable, "-m", "jax_tp.examples.e01_basic"]
    done = subprocess.run(command, env=without_starter(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


ABORTS = """
import os
from jax_tp.examples import common
def devices():
    os.write(2, b"why\\n")
    os._exit(3)
common.jax.devices = devices
common.use_all_devices("cuda")
"""


def test_gpus_that_abort_the_process_leave_their_reason_on_stderr():
    done = subprocess.run([sys.executable, "-c", ABORTS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert done.stderr == "why\n"


def test_only_the_lines_about_the_driver_are_left_out(capfd):
    with import_module("jax_tp.examples").without_driver_lines():
        os.write(2, b"I0000 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not be used.\n")
        os.write(2, b"E0000 something real\n")
    assert capfd.readouterr().err == "E0000 something real\n"
    os.write(2, b"Could not find cuda drivers on your machine\n")
    assert capfd.readouterr().err == "Could not find cuda drivers on your machine\n"
