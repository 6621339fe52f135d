"""What all models have: inputs to check, a row of blocks, and tokens that are shared out under sequence parallelism."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh, reshard
from jax.sharding import PartitionSpec as P

from jax_tp import block, cross_entropy, embedding
from jax_tp.collectives import map_shards, split_to_tp
from jax_tp.layouts import Plan, State, child


def check_inputs(inputs: Mapping[str, np.ndarray], num_ids: int, **options: Any) -> None:
    """Refuse ids and labels outside the vocabulary (ValueError), on the host, before they are placed."""
    embedding.check_inputs(inputs, num_ids)
    cross_entropy.check_inputs(inputs, num_ids)


def build_blocks(mesh: Mesh, style: str, plan: Plan, state: State, options: Mapping[str, Any]) -> nnx.List:
    """The blocks "0", "1", ... of the state, as many as it has, with the options of `block.build`."""
    names = sorted({name.partition(".")[0] for name in state}, key=int)
    return nnx.List([block.build(mesh, style, plan, child(state, name), **options) for name in names])


def own_tokens(x: jax.Array, dim: int, style: str) -> jax.Array:
    """The own part along `dim`, the tokens, of what is whole; backward an all-gather of the gradient (payload: x)."""
    whole = P(*(None for _ in x.shape))
    own = P(*("tp" if i == dim else None for i in range(x.ndim)))
    if style == "manual":
        return map_shards(lambda whole: split_to_tp(whole, "tp", dim), in_specs=whole, out_specs=own)(x)
    if style == "typed":
        return reshard(x, own)
    return with_sharding_constraint(with_sharding_constraint(x, whole), own)  # backward: gathered here, not later
