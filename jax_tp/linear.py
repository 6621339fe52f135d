"""Linear layer, column- or row-parallel: y = x w + b.

    B batch   S sequence   D features in   F features out   tp devices on the axis "tp"

                      column-parallel: w = [w_0 | w_1 | ...]     row-parallel: w = [w_0 / w_1 / ...]
    w_DF per device   [D, F/tp]                                  [D/tp, F]
    x_BSD per device  [B, S, D]                                  [B, S, D/tp]
    y_BSF per device  [B, S, F/tp]                               [B, S, F]
    forward           no collective                              all-reduce y_BSF
    backward          all-reduce dx_BSD                          no collective

Under sequence parallelism the input and output of the column-row pair are sharded on S, [B, S/tp, ...]. Each all-reduce
becomes a reduce-scatter and an all-gather, with the same number of bytes on the wire.

                      column_sequence_parallel                   row_sequence_parallel
    forward           all-gather x_BSD                           reduce-scatter y_BSF
    backward          reduce-scatter dx_BSD                      all-gather dy_BSF, all-reduce db_F

The gathered x is saved for the gradient of w rather than gathered again in the backward pass. Each device adds a
row-parallel bias to its own tokens only, so db is a partial sum over tokens and must be all-reduced.

`gather_output` appends an all-gather of y to the column-parallel layer; `split_input` prepends a split of x to the
row-parallel layer (its transpose gathers dx). The bias of a row-parallel layer is added once, after the reduction.

Sources: Megatron-LM, https://arxiv.org/abs/1909.08053, section 3; sequence parallelism,
https://arxiv.org/abs/2205.05198, section 4.2.2.
"""

from __future__ import annotations

from abc import abstractmethod

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh, reshard
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import (
    copy_to_tp,
    gather_from_sp,
    gather_from_tp,
    map_shards,
    reduce_from_tp,
    reduce_scatter_to_sp,
    split_to_tp,
)
from jax_tp.layouts import Plan, State, place
from jax_tp.state import check_plan, check_state

# Flax stores the kernel as [in, out]: the input features are dim 0, the output features dim 1.
COLUMN = {"kernel": P(None, "tp"), "bias": P("tp")}
ROW = {"kernel": P("tp", None), "bias": P(None)}
REPLICATED, SEQUENCE_SHARDED, FEATURES_SHARDED = P(None, None, None), P(None, "tp", None), P(None, None, "tp")

PLANS = {
    "column_parallel": Plan(x=REPLICATED, y=FEATURES_SHARDED, params=COLUMN),
    "column_parallel_gather_output": Plan(x=REPLICATED, y=REPLICATED, params=COLUMN),
    "column_sequence_parallel": Plan(x=SEQUENCE_SHARDED, y=FEATURES_SHARDED, params=COLUMN),
    "row_parallel": Plan(x=FEATURES_SHARDED, y=REPLICATED, params=ROW),
    "row_parallel_split_input": Plan(x=REPLICATED, y=REPLICATED, params=ROW),
    "row_sequence_parallel": Plan(x=FEATURES_SHARDED, y=SEQUENCE_SHARDED, params=ROW),
}


def is_row(plan: Plan) -> bool:
    """Whether the plan shards the input features of the weight."""
    return plan.params["kernel"] == P("tp", None)


class ShardedLinear(nnx.Linear):
    """Flax's own layer with the given state, its parameters laid out as the plan says."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State) -> None:
        D, F = state["w"].shape
        self.plan, self.specs = plan, (plan.params["kernel"], plan.params["bias"])
        super().__init__(
            D,
            F,
            use_bias="b" in state,
            param_dtype=state["w"].dtype,
            kernel_init=lambda *_: place(state["w"], mesh, plan.params["kernel"]),
            bias_init=lambda *_: place(state["b"], mesh, plan.params["bias"]),
            rngs=nnx.Rngs(0),
        )


def values(module: nnx.Linear) -> tuple[jax.Array, jax.Array | None]:
    """The arrays of a linear's parameters, (w, b)."""
    return module.kernel[...], None if module.bias is None else module.bias[...]


def linear(x: jax.Array, w: jax.Array, b: jax.Array | None = None) -> jax.Array:
    """x w + b on whatever shards are given: torch.nn.functional.linear, with w as [in, out]."""
    y = jnp.dot(x, w)
    return y if b is None else y + b


# ---------------------------------------------------------------------------------------------------------- auto


class AutoColumnLinear(ShardedLinear):
    """The compiler shards the computation; without these constraints it may gather w where w is smaller than x or y."""

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        batch = self.plan.x[0]  # the axis that shards the batch, if one does: hybrid.py
        if self.plan.x[1] == "tp":
            x_BSD = with_sharding_constraint(x_BSD, P(batch, None, None))
        y_BSF = with_sharding_constraint(super().__call__(x_BSD), P(batch, None, "tp"))
        return with_sharding_constraint(y_BSF, self.plan.y)


class AutoRowLinear(ShardedLinear):
    """The compiler sees a product over a sharded D whose result must be replicated, and inserts the all-reduce."""

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        x_BSD = with_sharding_constraint(x_BSD, P(self.plan.y[0], None, "tp"))
        return with_sharding_constraint(super().__call__(x_BSD), self.plan.y)


# --------------------------------------------------------------------------------------------------------- typed


class TypedColumnLinear(ShardedLinear):
    """The product of a replicated x and a column-sharded w has the type [B, S, F@tp]; nothing is sent."""

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        if self.plan.x == SEQUENCE_SHARDED:
            x_BSD = reshard(x_BSD, REPLICATED)
        y_BSF = super().__call__(x_BSD)  # [B, S, F@tp]
        return reshard(y_BSF, self.plan.y)


class TypedRowLinear(ShardedLinear):
    """The sharding of a product over a sharded D is ambiguous: `out_sharding` asks for the sum, by an all-reduce."""

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        x_BSD = reshard(x_BSD, FEATURES_SHARDED)
        return super().__call__(x_BSD, out_sharding=self.plan.y)  # Flax adds the bias after the product


# -------------------------------------------------------------------------------------------------------- manual


class ManualLinear(ShardedLinear):
    """`body` is the per-device code; it sees the shards that the plan assigns to the device."""

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, *self.specs),
            out_specs=self.plan.y,
        )
        return per_device(x_BSD, *values(self))

    @abstractmethod
    def body(self, x: jax.Array, w: jax.Array, b: jax.Array | None) -> jax.Array:
        """Compute this device's y from its x; the subclasses' comments give the shapes of the shards."""


class ManualColumnLinear(ManualLinear):
    """f, then the product with this device's columns of w."""

    def body(self, x: jax.Array, w: jax.Array, b: jax.Array | None) -> jax.Array:
        x = gather_from_sp(x, "tp", dim=1) if self.plan.x == SEQUENCE_SHARDED else copy_to_tp(x, "tp")  # [B, S, D]
        y = linear(x, w, b)  # [B, S, F/tp]
        return y if self.plan.y == FEATURES_SHARDED else gather_from_tp(y, "tp", dim=2)


class ManualRowLinear(ManualLinear):
    """The product with this device's rows of w, then g. The bias comes last, or it would be added tp times."""

    def body(self, x: jax.Array, w: jax.Array, b: jax.Array | None) -> jax.Array:
        x = x if self.plan.x == FEATURES_SHARDED else split_to_tp(x, "tp", dim=2)  # [B, S, D/tp]
        y = linear(x, w)  # [B, S, F], partial
        if self.plan.y == SEQUENCE_SHARDED:
            y = reduce_scatter_to_sp(y, "tp", dim=1)  # [B, S/tp, F]
            return y if b is None else y + copy_to_tp(b, "tp")
        y = reduce_from_tp(y, "tp")  # [B, S, F]
        return y if b is None else y + b


# The state by name, in sizes: state.py.
SHAPES = {"w": "D F", "b?": "F"}

STYLES = {
    "auto": (AutoColumnLinear, AutoRowLinear),
    "typed": (TypedColumnLinear, TypedRowLinear),
    "manual": (ManualColumnLinear, ManualRowLinear),
}


def build(mesh: Mesh, style: str, plan: Plan, state: State) -> nnx.Module:
    """The layer in one of the three styles; `state` holds the global w [D, F] and, if the layer has one, b [F]."""
    check_plan(plan, PLANS)
    check_state(state, SHAPES)

    return STYLES[style][is_row(plan)](mesh, plan, state)
