"""What the models share: checks of inputs, the stack of blocks, and slicing tokens for sequence parallelism."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import lax
from jax.lax import optimization_barrier, with_sharding_constraint
from jax.sharding import Mesh, reshard
from jax.sharding import PartitionSpec as P

from jax_tp import block, cross_entropy, dropout, embedding
from jax_tp.collectives import map_shards, split_to_tp
from jax_tp.layouts import Plan, State, child, native_name, place
from jax_tp.state import in_row


def check_inputs(inputs: Mapping[str, np.ndarray], num_ids: int, **options: Any) -> None:
    """Raises ValueError for ids or labels outside the vocabulary or a step that exceeds 32 bits; runs on the host."""
    embedding.check_inputs(inputs, num_ids)
    cross_entropy.check_inputs(inputs, num_ids)
    if "step" in inputs:
        dropout.check_inputs(inputs)


def blocks_of(state: State, options: Mapping[str, Any]) -> dict[str, str]:
    """The shapes of the parameters of all blocks by name, in the notation of state.py."""
    first = next((key.split(".")[1] for key in state if key.startswith("blocks.")), "0")
    shapes = block.shapes_of(child(state, f"blocks.{first}"), options["norm_kind"], options["activation"])
    return in_row("blocks", shapes, state)


def build_blocks(
    layer: ModuleType,
    mesh: Mesh,
    style: str,
    plan: Plan,
    state: State,
    options: Mapping[str, Any],
) -> nnx.List:
    """The blocks "0", "1", ... of the state, built by the layer with these options.

    A block "all" has the parameters of all blocks, stacked along a leading dim L, and is run as one loop.
    Raises ValueError for such a loop with dropout.
    """
    if stacked := child(state, "all"):
        if options.get("drop_rate"):
            raise ValueError(
                "drop_rate: blocks in one loop would all draw the same masks; 0 would work, or blocks in a row"
            )
        one = {name: of_one_block(array) for name, array in stacked.items()}
        return nnx.List([Loop(mesh, layer.build(mesh, style, plan, one, **options), stacked)])
    names = sorted({name.partition(".")[0] for name in state}, key=int)
    blocks = (layer.build(mesh, style, plan, child(state, name), **options, number=int(name)) for name in names)
    return nnx.List(blocks)


def build_dropout(mesh: Mesh, style: str, plan: Plan, state: State, options: Mapping[str, Any]) -> nnx.Module:
    """The dropout on the input of the blocks of this state. Its number, 3 L, follows those of the L blocks."""
    number = 3 * len({name.partition(".")[0] for name in state})
    return dropout.build(mesh, style, plan, {}, options.get("drop_rate", 0.0), options.get("seed", 0), number)


def of_one_block(array: np.ndarray | jax.ShapeDtypeStruct) -> np.ndarray | jax.ShapeDtypeStruct:
    """The first slice of a stacked parameter: [L, ...] -> [...]."""
    if isinstance(array, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(array.shape[1:], array.dtype)
    return array[0]


class Loop(nnx.Module):
    """h_i+1 = block_i(h_i), i = 0 .. L-1, by `lax.scan` over stacked parameters: XLA compiles one block, not L.

    stacked: each parameter of `block` by canonical name, [L, ...]; L is not sharded, the other dims as in the block.
    Equivalent to L blocks in a row, except that the compiler cannot optimise across them.
    """

    def __init__(self, mesh: Mesh, block: nnx.Module, stacked: State) -> None:
        params = nnx.to_flat_state(nnx.state(block, nnx.Param))
        by_name = {".".join(map(str, path)): param for path, param in params}
        for name, array in stacked.items():
            param = by_name[native_name(name)]
            param.set_value(place(array, mesh, P(None, *param.get_value().sharding.spec)))
        nnx.update(block, nnx.from_flat_state(params))
        self.block = block
        self.gather: Callable[[nnx.State], nnx.State] = unchanged  # hybrid.py: makes a block's parameters whole
        self.policy: Callable[..., bool] | None = None  # of `jax.checkpoint`: what is saved for the backward pass
        self.keeps_inputs_only = False  # instead of a policy, which an outer policy would override

    def __call__(self, h_BSD: jax.Array, step: jax.Array | None = None) -> jax.Array:  # no dropout: `build_blocks`
        graph, stacked = nnx.split(self.block)

        def run(h_BSD: jax.Array, params: nnx.State) -> jax.Array:
            return nnx.merge(graph, self.gather(params))(h_BSD)

        if self.keeps_inputs_only:
            run = recomputed(run)
        elif self.policy is not None:
            run = jax.checkpoint(run, policy=self.policy, prevent_cse=False)  # the loop itself is a barrier
        return lax.scan(lambda h_BSD, params: (run(h_BSD, params), None), h_BSD, stacked)[0]


def recomputed(run: Callable[[jax.Array, nnx.State], jax.Array]) -> Callable[[jax.Array, nnx.State], jax.Array]:
    """The same function, recomputed in the backward pass, for which only its arguments are saved."""
    again = jax.custom_vjp(run)
    again.defvjp(lambda *kept: (run(*kept), kept), lambda kept, grad: jax.vjp(run, *kept)[1](grad))
    return again


def unchanged(params: nnx.State) -> nnx.State:
    """For parameters that need no gathering."""
    return params


def own_tokens(x: jax.Array, dim: int, style: str) -> jax.Array:
    """This device's slice of a replicated x along `dim`, the tokens; backward an all-gather (payload: x)."""
    whole = P(*(None for _ in x.shape))
    own = P(*("tp" if i == dim else None for i in range(x.ndim)))
    if style == "manual":
        return map_shards(lambda whole: split_to_tp(whole, "tp", dim), in_specs=whole, out_specs=own)(x)
    if style == "typed":
        return reshard(x, own)
    # Backward: gathered here, not later. Of two constraints in a row XLA may keep the first alone, hence the barrier.
    return with_sharding_constraint(optimization_barrier(with_sharding_constraint(x, whole)), own)
