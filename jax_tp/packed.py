"""Several column-parallel linears of the same x in one product: y = x [w_0 | w_1 | ...] + [b_0 | b_1 | ...].

    B batch   S sequence   D features in   C linears   F features out of each   tp devices on the axis "tp"

    x_BSD per device   [B, S, D]
    w_DCF per device   [D, C, F/tp]
    y_BSCF per device  [B, S, C, F/tp]

In memory the weights lie one after the other. Sharded as one matrix of C*F columns, a device could hold columns of one
linear only, and splitting y again would move all of it. Viewed as C matrices, each sharded by columns, nothing moves.
A checkpoint of the contiguous [D, C*F] has the same bytes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_tp.layouts import Plan, State, place
from jax_tp.linear import REPLICATED, values

# The kernel is [D, C, F], the bias [C, F].
PACKED_COLUMN = Plan(
    x=REPLICATED, y=P(None, None, None, "tp"), params={"kernel": P(None, None, "tp"), "bias": P(None, "tp")}
)


def linears(x: jax.Array, w: jax.Array, b: jax.Array | None = None) -> jax.Array:
    """All C linears, on whatever shards are given: x [B, S, D], w [D, C, F], b [C, F] -> [B, S, C, F]."""
    y = jnp.einsum("bsd,dcf->bscf", x, w)
    return y if b is None else y + b


class ShardedPackedLinear(nnx.Module):
    """The layer, its parameters laid out as the plan says."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State) -> None:
        self.kernel = nnx.Param(place(state["w"], mesh, plan.params["kernel"]))
        self.bias = nnx.Param(place(state["b"], mesh, plan.params["bias"])) if "b" in state else None
        self.specs = plan.params["kernel"], plan.params["bias"]

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        return linears(x_BSD, *values(self))
