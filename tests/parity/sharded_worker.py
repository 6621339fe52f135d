"""`sharded_worker.py torch|jax DIR`: the models of DIR at every tp degree, their logits, loss and gradients gathered.

DIR holds `options.json` and `<model>.safetensors` (parameters, ids, labels, target); what comes out is
`<framework>.<model>.tp<n>.safetensors`. PyTorch in 4 processes, JAX in one with 4 devices.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from parity.files_contract import load_arrays, save_arrays

# Every style, and both plans.
AT = {1: ("megatron", "typed"), 2: ("megatron", "auto"), 4: ("sequence_parallel", "manual")}


def main() -> int:
    framework, directory = sys.argv[1], Path(sys.argv[2])
    side = importlib.import_module(f"sharded_{framework}")
    side.join()
    for model, options in json.loads((directory / "options.json").read_text()).items():
        arrays = load_arrays(directory / f"{model}.safetensors")
        for tp, (plan, style) in AT.items():
            gathered = side.gather(model, options, plan, style, tp, arrays)
            if int(os.environ["RANK"]) == 0:
                save_arrays(directory / f"{framework}.{model}.tp{tp}.safetensors", gathered)
    side.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
