"""Without a GPU, or with too few, `--device cuda` is refused before anything is started or written."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from parity import gpus
from parity.cli import app
from parity.gpus import check_cuda_build, check_gpus, count_gpus
from parity.interpreter import LaunchError


class Driver:
    """libcuda with so many GPUs."""

    def __init__(self, number: int, init_code: int = 0) -> None:
        self.number, self.init_code = number, init_code

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.init_code

    def cuDeviceGetCount(self, out: ctypes.Array) -> int:  # noqa: N802
        ctypes.cast(out, ctypes.POINTER(ctypes.c_int))[0] = self.number
        return 0


def no_driver(name: str) -> None:
    raise OSError(name)


def test_gpus_are_counted_by_the_driver(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(4))
    assert count_gpus() == 4
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(4, init_code=100))  # CUDA_ERROR_NO_DEVICE
    assert count_gpus() == 0
    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    assert count_gpus() == 0


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (0, "--device cuda: 4 GPUs are needed, one a process, and the driver finds none here: take --device cpu"),
        (1, "4 GPUs are needed, one a process, and there is 1: take a smaller mesh or --device cpu"),
        (3, "4 GPUs are needed, one a process, and there are 3: take a smaller mesh or --device cpu"),
    ],
)
def test_too_few_gpus_are_said(monkeypatch, found, says):
    monkeypatch.setattr(gpus, "count_gpus", lambda: found)
    with pytest.raises(LaunchError) as caught:
        check_gpus("cuda", 4)
    assert says in str(caught.value)
    check_gpus("cuda", found)
    check_gpus("cpu", 4)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--out", "run"],
        ["train", "--out", "run"],
        ["bench", "grid"],
        ["calibrate", "--local", "--base", "perlmutter"],
    ],
    ids=lambda words: words[0],
)
def test_commands_say_so_at_once_and_leave_nothing(monkeypatch, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    done = CliRunner().invoke(app, [*words, "--device", "cuda", "--torch-python", "/nowhere"])  # not looked at yet
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "the driver finds none here: take --device cpu" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("cuda", "is_refused"), [("None", True), ("'12.9'", False)])
def test_torch_that_was_built_without_cuda_is_refused(monkeypatch, tmp_path, cuda, is_refused):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise AssertionError('it is not imported')\n")
    (tmp_path / "torch" / "version.py").write_text(f"cuda = {cuda}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    refused_or_not(Path(sys.executable), "torch", is_refused)


@pytest.mark.parametrize("is_refused", [True, False])
def test_jax_without_its_cuda_plugin_is_refused(monkeypatch, tmp_path, is_refused):
    if not is_refused:
        (tmp_path / "jax_cuda13_plugin").mkdir()
        (tmp_path / "jax_cuda13_plugin" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    isolated = tmp_path / "python"  # without the packages of this environment
    isolated.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    isolated.chmod(0o755)
    refused_or_not(isolated, "jax", is_refused)


def refused_or_not(python: Path, framework: str, is_refused: bool) -> None:
    if not is_refused:
        check_cuda_build(str(python), framework)
        return
    with pytest.raises(LaunchError, match=rf"{framework} in .* was built without CUDA: .*--{framework}-python"):
        check_cuda_build(str(python), framework)


def script(path: Path, lines: str) -> Path:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


def test_interpreter_that_hangs_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "CHECK_LIMIT_S", 0.1)
    python = script(tmp_path / "python", "exec sleep 60")
    with pytest.raises(LaunchError, match=rf"^--device cuda: {python} .* with --torch-python$"):
        check_cuda_build(str(python), "torch")


def test_interpreter_that_is_gone_is_one_line(tmp_path):
    with pytest.raises(LaunchError, match=r"^--device cuda: .*python .* with --jax-python$"):
        check_cuda_build(str(tmp_path / "python"), "jax")


def test_interpreter_does_not_wait_for_what_is_typed(monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "CHECK_LIMIT_S", 5.0)
    ours, (reads, writes) = os.dup(0), os.pipe()
    os.dup2(reads, 0)  # a terminal at which nobody types
    try:
        refused_or_not(script(tmp_path / "python", "cat\necho None"), "torch", True)
    finally:
        os.dup2(ours, 0)
        for end in (ours, reads, writes):
            os.close(end)
