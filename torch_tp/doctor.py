"""What PyTorch and this package would do here, as a line of JSON, for `parity doctor`: `python -m torch_tp.doctor`.

It imports all that a worker does, and joins no group.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from torch_tp.mesh import RANK_VARIABLES, WORLD_VARIABLES, read_rank
from torch_tp.worker import set_precision


def facts() -> dict[str, Any]:
    """Version, CUDA build, GPUs, float32 precision by default and in workers, and which rank `join` would be."""
    by_default = torch.get_float32_matmul_precision()
    set_precision()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,  # None in a build for CPUs
        "num_gpus": torch.cuda.device_count(),
        "precision_by_default": by_default,
        "precision_in_workers": torch.get_float32_matmul_precision(),
        "rank": read_rank(RANK_VARIABLES, 0),
        "world": read_rank(WORLD_VARIABLES, 1),
    }


if __name__ == "__main__":
    print(json.dumps(facts()))
