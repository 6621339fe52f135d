"""Whether what a step holds fits into a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from parity.cost.machine import Machine
from parity.step_contract import Memory

# What a GPU's memory holds beside the step: CUDA context and kernels (about 0.5 GB), NCCL's buffers of a few
# communicators, workspaces of cuBLAS and cuDNN. An estimate.
RESERVED_BYTES = 1.5e9


@dataclass(frozen=True)
class Fit:
    """Bytes of a GPU: what the step needs at its peak, and what there is for it. Spare is negative where it lacks."""

    needed_bytes: int
    usable_bytes: float

    @property
    def spare_bytes(self) -> float:
        return self.usable_bytes - self.needed_bytes

    @property
    def fits(self) -> bool:
        return self.spare_bytes >= 0


def fit_of(machine: Machine, memory: Memory) -> Fit:
    """The step's peak beside the GPU's memory less what is reserved."""
    return Fit(memory.total, machine.gpu.memory_bytes - RESERVED_BYTES)
