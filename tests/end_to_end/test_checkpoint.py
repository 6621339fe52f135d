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


def same(one: Path, other: Path) -> bool:
    before, after = whole(one), whole(other)
    assert int(before["count"]) == 2
    assert any(np.any(value) for name, value in before.items() if name.endswith(".m"))
    return {name: value.tobytes() for name, value in before.items()} == {
        name: value.tobytes() for name, value in after.items()
    }


@pytest.mark.parametrize(
    ("framework", "tp"), [("torch", 1), ("torch", 2), ("torch", 4), *(("jax", tp) for tp in (1, 2, 3, 4))]
)
def test_own_format_gives_the_same_bits_at_every_tp_degree(root, framework, tp):
    assert same(root / f"{framework}.native.want", root / f"{framework}.native.tp{tp}")
    assert not same(root / f"{framework}.native.want", root / f"{framework}.trained")  # another rate, the same count


@pytest.mark.parametrize(("framework", "other"), [("torch", "jax"), ("jax", "torch")])
def test_what_one_framework_saved_its_way_goes_through_the_neutral_format_into_the_others(root, framework, other):
    assert same(root / f"{other}.native.want", root / f"{framework}.converted.got")


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_every_damage_of_every_file_was_found(root, framework):
    """The workers assert the lines; this that there was something to find: at least 5 damages of 4 ranks' files."""
    files = [path for path in (root / f"{framework}.native").rglob("*") if path.is_file()]
    assert len(files) >= 8
    assert int((root / f"{framework}.damaged.found").read_text()) == 5 * len(files)


@pytest.mark.parametrize(("framework", "other"), [("torch", "jax"), ("jax", "torch")])
def test_checkpoint_knows_no_data_parallelism(root, framework, other):
    """From fsdp x tp to dp x tp in the own format, and in the other framework to fsdp x tp and to tp alone."""
    assert same(root / f"{framework}.hybrid.want", root / f"{framework}.hybrid.dp")
    assert same(root / f"{other}.hybrid.want", root / f"{framework}.hybrid.plain")
    assert same(root / f"{other}.hybrid.want", root / f"{framework}.hybrid.fsdp")
