"""The real worker with a fault planted: `faulty_worker.py torch|jax RUN ORDERS`; the case's seed chooses the fault.

Each fault is what people really get wrong, made by replacing one function of the package while the case runs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

NO_FAULT = 0
FAULTS = {
    1: "missing_all_reduce",
    2: "missing_gradient_all_reduce",
    3: "bias_added_tp_times",
    4: "swapped_shards",
    5: "gelu_tanh_for_erf",
    6: "weight_replicated_by_accident",
    7: "other_input_on_one_rank",
    8: "one_collective_too_many",
    9: "target_of_another_dtype",
    10: "weights_never_move",
    11: "replicated_gradients_counted_tp_times",
    12: "decay_of_the_framework",
    13: "gradients_not_synced_over_dp",
    14: "panel_of_another_owner",
    15: "norm_gradient_of_own_rows",
    16: "masks_by_local_place",
    17: "gradients_times_tp",
    18: "fused_weight_cut_as_one",
    19: "norm_gradient_of_own_tokens",
}


@contextmanager
def planted(framework: str, fault: str) -> Iterator[None]:
    """Replace what makes the fault, in the layers and the optimizer of this framework."""
    layers = ("linear", "packed", "mlp", "norm", "dropout", "hybrid", "grid.norm", "grid.summa")
    names = (*layers, "optimizer", "tasks")
    modules = [importlib.import_module(f"{framework}_tp.{name}") for name in names]
    replacements = importlib.import_module(f"faults_{framework}").replacements(fault)
    with ExitStack() as stack:
        for name, make in replacements.items():
            for module in modules:
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, make(getattr(module, name))))
        yield


def main() -> int:
    framework = sys.argv.pop(1)
    worker, tasks = (importlib.import_module(f"{framework}_tp.{name}") for name in ("worker", "tasks"))

    def faulty(original):  # type: ignore[no-untyped-def]
        def run(case, *rest):  # type: ignore[no-untyped-def]
            getattr(tasks, "PROGRAM", {}).clear()  # the seed, which names the fault, is no part of a program's name
            if case.seed == NO_FAULT:
                return original(case, *rest)
            with planted(framework, FAULTS[case.seed]):
                return original(case, *rest)

        return run

    with ExitStack() as stack:
        for name in ("run_case", "trace_case"):
            if hasattr(worker, name):
                stack.enter_context(patch.object(worker, name, faulty(getattr(worker, name))))
        return int(worker.main())


if __name__ == "__main__":
    sys.exit(main())
