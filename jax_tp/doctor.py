"""What JAX and this package would do here, as a line of JSON, for `parity doctor`: `python -m jax_tp.doctor`.

It imports all that a worker does, and joins no group.
"""

from __future__ import annotations

import importlib.util
import json
import os
from typing import Any

import jax

from jax_tp.mesh import RANK_VARIABLES, WORLD_VARIABLES, read_rank
from jax_tp.worker import set_precision


def facts() -> dict[str, Any]:
    """Version, CUDA build, GPUs, float32 precision by default and in workers, and which rank `join` would be."""
    by_default = jax.config.jax_default_matmul_precision
    set_precision()
    plugins = [version for version in ("13", "12") if importlib.util.find_spec(f"jax_cuda{version}_plugin")]
    return {
        "version": jax.__version__,
        "cuda": plugins[0] if plugins else None,
        "num_gpus": num_gpus(),
        "precision_by_default": by_default,
        "precision_in_workers": jax.config.jax_default_matmul_precision,
        "rank": read_rank(RANK_VARIABLES, 0),
        "world": read_rank(WORLD_VARIABLES, 1),
    }


def num_gpus() -> int:
    """How many GPUs JAX finds; takes no memory of them."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    jax.config.update("jax_platforms", "cuda")
    try:
        return jax.local_device_count()
    except (RuntimeError, AssertionError):  # which of them depends on whether the plugin is installed
        return 0


if __name__ == "__main__":
    print(json.dumps(facts()))
