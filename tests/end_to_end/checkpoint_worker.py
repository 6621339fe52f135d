"""`checkpoint_worker.py torch|jax DIR`: what test_checkpoint.py asks of real groups of 4 devices.

Both sides run at once; each waits for the checkpoints of the other, which appear complete or not at all.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path

from parity.cases import FAMILIES
from parity.cases.family import Selection, cases_of
from parity.inputs import make_inputs

WAIT_S = 120.0
NUMERICS = ("float64", "float32", "bfloat16")
# (layer, plan): tied, replicated and sharded parameters, and a sequence-parallel plan.
MODELS = (("models.gpt", "megatron"), ("block", "sequence_parallel"))


def question(layer: str, plan: str, dtype: str):
    """The case, parameters and batch."""
    (family,) = (family for family in FAMILIES if (family.layer, family.plan) == (layer, plan))
    case = next(cases_of(family, Selection(meshes=({"tp": 4},), numerics=(dtype,))))
    params, batch = family.shapes(case)
    made = make_inputs(
        layer, case.options, params, batch, family.ranges(case), dtype, "normal", 0, family.ignored, num_batches=4
    )
    return case, *made


def wait_for(directory: Path) -> None:
    """Until the other framework has written it."""
    end = time.monotonic() + WAIT_S
    while not directory.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{directory} did not appear")
        time.sleep(0.05)


def main() -> int:
    framework, root = sys.argv[1], Path(sys.argv[2])
    if framework == "jax":
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    side = importlib.import_module(f"checkpoint_{framework}")
    side.join()
    other = "jax" if framework == "torch" else "torch"
    for layer, plan in MODELS:
        for dtype in NUMERICS:
            case, params, _ = question(layer, plan, dtype)
            name = f"{layer}.{dtype}"
            side.save(case, params, 4, root / f"{framework}.{name}")
            wait_for(root / f"{other}.{name}")
            for tp in side.DEGREES:
                side.load(case, params, tp, root / f"{other}.{name}")
    case, params, batch = question("block", "sequence_parallel", "float64")
    side.train(case, params, batch, root / f"{framework}.trained")
    wait_for(root / f"{other}.trained")
    side.reload_optimizer(case, params, root / f"{other}.trained", root / f"{framework}.again")
    side.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
