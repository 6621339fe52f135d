"""The sharded modules of both frameworks against `transformers`, gathered: logits, loss and gradients, in float64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sharded_worker import AT
from transformers_names import NAMES
from transformers_oracle import OPTIONS, V, errors_of, inputs, theirs

from parity.files_contract import load_arrays, save_arrays
from parity.rank_environment import free_port

PADDED_V = 32  # rows of the tables, of which V are ids: 4 divides it
VOCABULARY = {"tied.embed.table": 0, "embed.table": 0, "vocab.b": 0}  # the dim, by parameter; Llama's head.w beside


def vocabulary_dim(model: str, name: str) -> int | None:
    return 1 if (model, name) == ("models.llama", "head.w") else VOCABULARY.get(name)


def padded(model: str, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    widths = {name: [(0, 0)] * array.ndim for name, array in params.items()}
    for name, width in widths.items():
        if (dim := vocabulary_dim(model, name)) is not None:
            width[dim] = (0, PADDED_V - V)
    return {name: np.pad(array, widths[name]) for name, array in params.items()}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of both frameworks, run side by side; each runs all models and tp degrees in one group."""
    directory = tmp_path_factory.mktemp("sharded")
    (directory / "options.json").write_text(json.dumps(OPTIONS))
    for model in OPTIONS:
        params, batch = inputs(model)
        named = {f"params.{name}": array for name, array in padded(model, params).items()}
        save_arrays(directory / f"{model}.safetensors", named | batch)
    flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    processes = []
    for framework, ranks in (("torch", 4), ("jax", 1)):
        place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank in range(ranks):
            environment = {**os.environ, **place, "RANK": str(rank), "OMP_NUM_THREADS": "1", "XLA_FLAGS": flags}
            command = [sys.executable, str(Path(__file__).with_name("sharded_worker.py")), framework, str(directory)]
            with (directory / f"{framework}{rank}.err").open("w") as log:
                processes.append(subprocess.Popen(command, env=environment, stderr=log))
    try:
        codes = [process.wait(timeout=250) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert set(codes) == {0}, "\n".join(path.read_text()[-1500:] for path in directory.glob("*.err"))
    return directory


def gathered(directory: Path, framework: str, model: str, tp: int) -> dict[str, np.ndarray]:
    """A run's logits and gradients without the padding of the vocabulary, whose gradients must be 0."""
    found = load_arrays(directory / f"{framework}.{model}.tp{tp}.safetensors")
    found["logits"] = found["logits"][..., :V]
    for name in NAMES[model].values():
        dim = vocabulary_dim(model, name) if isinstance(name, str) else None
        if dim is not None:
            found[f"{name}.grad"], padding = np.split(found[f"{name}.grad"], [V], dim)
            assert padding.shape[dim] == PADDED_V - V
            assert not padding.any()
    return found


@pytest.mark.parametrize("tp", AT)
@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("model", OPTIONS)
def test_modules_in_shards_are_those_of_transformers(sharded: Path, model: str, framework: str, tp: int) -> None:
    """Both may be off the formula by one bound, hence 2."""
    got = theirs(model, *inputs(model))
    errors = errors_of(model, got, gathered(sharded, framework, model, tp))
    assert {name: error for name, error in errors.items() if not error < 2} == {}


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("models.gpt", {"layer_norm_epsilon": 1.001e-5}),
        ("models.bert", {"hidden_act": "gelu_new"}),
        ("models.llama", {"rms_norm_eps": 1.001e-5}),
    ],
)
def test_modules_in_shards_are_not_those_of_another_configuration(
    sharded: Path, model: str, change: dict[str, Any]
) -> None:
    got = theirs(model, *inputs(model), **change)
    for framework in ("torch", "jax"):
        errors = errors_of(model, got, gathered(sharded, framework, model, 4))
        assert min(errors["logits"], errors["y"]) > 1e4
