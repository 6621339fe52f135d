"""Whole steps of training, traced by both frameworks side by side for GPUs that this machine has not got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parity.step_contract import StepRequest, StepTrace


def trace_steps(requests: Sequence[StepRequest], commands: Mapping[str, Sequence[str]]) -> dict[str, list[StepTrace]]:
    """framework -> one StepTrace a request, in their order.

    commands: framework -> how to start its worker, up to and without RUN_DIR, e.g. ("python", "-m", "torch_tp.worker").
    Raises LaunchError when a command cannot be started.
    """
    raise NotImplementedError
