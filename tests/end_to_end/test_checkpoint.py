"""Checkpoints of real groups: saved at tp = 4 in one framework, loaded at every tp degree in the other, bit for bit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_worker import MODELS, NUMERICS, question

from parity.checkpoint_format import Checkpoint

WORKER = Path(__file__).with_name("checkpoint_worker.py")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Both groups at once; the workers themselves compare what they load with what they built."""
    directory = tmp_path_factory.mktemp("checkpoints")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(random.randrange(15_000, 30_000)), "WORLD_SIZE": "4"}
    processes = []
    for framework, ranks in (("torch", 4), ("jax", 1)):
        for rank in range(ranks):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", **meeting}
            command = [sys.executable, str(WORKER), framework, str(directory)]
            log = (directory / f"{framework}{rank}.err").open("w")
            processes.append((subprocess.Popen(command, env={**os.environ, **place}, stderr=log), log))
    try:
        codes = [process.wait(timeout=250) for process, _ in processes]
    finally:
        for process, log in processes:
            process.kill()
            log.close()
    assert set(codes) == {0}, "\n".join(path.read_text()[-1500:] for path in directory.glob("*.err"))
    return directory


def whole(directory: Path) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint(directory)
    return {
        name: checkpoint.read(name, tensor.shape, tensor.dtype, [(0, size) for size in tensor.shape])
        for name, tensor in checkpoint.tensors.items()
    }


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("dtype", NUMERICS)
@pytest.mark.parametrize("model", MODELS, ids=" ".join)
def test_saved_state_is_the_one_that_the_model_was_built_of(root, framework, model, dtype):
    _, params, _ = question(*model, dtype)
    saved = whole(root / f"{framework}.{model[0]}.{dtype}")
    assert set(saved) == set(params)
    for name, value in params.items():
        assert (saved[name].dtype, saved[name].tobytes()) == (value.dtype, value.tobytes()), name


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_replicas_are_written_once_and_shards_by_who_holds_them(root, framework):
    tensors = Checkpoint(root / f"{framework}.models.gpt.float64").tensors
    assert len(tensors["positions.table"].shards) == 1
    assert len(tensors["tied.embed.table"].shards) == 4


@pytest.mark.parametrize(("framework", "other"), [("torch", "jax"), ("jax", "torch")])
def test_optimizer_of_the_other_framework_is_saved_again_as_it_was(root, framework, other):
    """Moments and count went through a module at another tp degree."""
    before, after = whole(root / f"{other}.trained"), whole(root / f"{framework}.again")
    assert int(before["count"]) == 2
    assert {name: value.tobytes() for name, value in before.items()} == {
        name: value.tobytes() for name, value in after.items()
    }
    assert all(np.any(value) for name, value in before.items() if name.endswith((".w.m", ".w.v")))
