"""What one device holds in a step: its memory, by XLA's memory analysis.

    parameters, gradients, optimizer    as held between steps: shards, where they are sharded
    activations                         from the program: what the forward pass's loops pass to the backward pass's
    temporaries                         the peak of what XLA allocates beside arguments and results; with activations
    total                               arguments, results that are not donated arguments, and temporaries

What it computes, and what its loops keep, is read from the compiled program by `parity.hlo`. Allocators' rounding
and fragmentation are not included.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx


def shard_bytes(state: nnx.State) -> int:
    """The bytes of these arrays that one device holds."""
    return sum(
        int(np.prod(array.sharding.shard_shape(array.shape))) * array.dtype.itemsize for array in jax.tree.leaves(state)
    )


def held_bytes(compiled: Any, module: nnx.Module, optimizer: nnx.Optimizer | None) -> dict[str, int]:
    """Bytes that one device holds in a training step, by kind.

    module, optimizer: the arguments of the compiled step, or their shapes. Gradients take as much as the parameters.
    """
    analysis = compiled.memory_analysis()
    parameters = shard_bytes(nnx.state(module, nnx.Param))
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return {
        "parameters": parameters,
        "gradients": parameters,
        "optimizer": 0 if optimizer is None else shard_bytes(nnx.state(optimizer)),
        "activations": 0,
        "temporaries": analysis.temp_size_in_bytes,
        "total": analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes,
    }
