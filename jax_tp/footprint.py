"""What one device computes and holds in a step: its memory, as XLA's memory analysis has it.

    parameters, gradients, optimizer    as they lie between steps: shards, where they are sharded
    activations                         in the program: what the forward pass's loops hand on to the backward pass's
    temporaries                         what XLA allocates beside arguments and results, at its peak; activations too
    total                               arguments, results that take no argument's place, and temporaries

What it computes, and what its loops keep, stands in the compiled program, which `parity.hlo` reads. Allocators round up
and fragment; nothing of that is in these numbers.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx


def shard_bytes(state: nnx.State) -> int:
    """The bytes that one device holds of these arrays."""
    return sum(
        int(np.prod(array.sharding.shard_shape(array.shape))) * array.dtype.itemsize for array in jax.tree.leaves(state)
    )


def held_bytes(compiled: Any, module: nnx.Module, optimizer: nnx.Optimizer | None) -> dict[str, int]:
    """What one device holds in a step of training, by kind.

    module, optimizer: the arguments of the compiled step, or their shapes. Gradients are as large as the parameters.
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
