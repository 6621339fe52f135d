"""Layer norm and RMS norm over the features of each token: y = (x - mean) / sqrt(var + eps) * scale + b.

    B batch   S sequence   D features   tp devices on the axis "tp"

                       replicated     sequence-parallel
    x_BSD per device   [B, S, D]      [B, S/tp, D]
    y_BSD per device   [B, S, D]      [B, S/tp, D]
    scale_D, b_D       [D]            [D], replicated
    forward            no collective  no collective
    backward           no collective  all-reduce dscale_D, all-reduce db_D

Layer norm: mean and var = mean((x - mean)²) over the D features of a token. RMS norm: the same with mean 0 and no b.
Under sequence parallelism each device sees only its own tokens, so its gradient of scale is a partial sum over tokens.
If the all-reduce is forgotten nothing fails; the copies of scale drift apart.

Sources: Ba et al., https://arxiv.org/abs/1607.06450; Zhang & Sennrich, https://arxiv.org/abs/1910.07467; sequence
parallelism, https://arxiv.org/abs/2205.05198, section 4.2.2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import copy_to_tp, map_shards
from jax_tp.layouts import Plan, State, place
from jax_tp.state import check_plan, check_state

REPLICATED = {"scale": P(None), "bias": P(None)}
SEQUENCE_SHARDED = P(None, "tp", None)

PLANS = {
    "replicated": Plan(x=P(None, None, None), y=P(None, None, None), params=REPLICATED),
    "sequence_parallel": Plan(x=SEQUENCE_SHARDED, y=SEQUENCE_SHARDED, params=REPLICATED),
}


def layer_norm(x: jax.Array, scale: jax.Array, b: jax.Array | None, eps: float) -> jax.Array:
    """Layer norm of every token; the statistics of bfloat16 are computed in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps) * scale
    return (y if b is None else y + b).astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, b: jax.Array | None, eps: float) -> jax.Array:
    """RMS norm of every token; it has no b."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps) * scale
    return y.astype(x.dtype)


NORMS = {"layer_norm": layer_norm, "rms_norm": rms_norm}


class ShardedNorm(nnx.Module):
    """The parameters of the typed and manual layers, laid out as the plan says."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, kind: str, eps: float) -> None:
        self.plan, self.norm, self.eps = plan, NORMS[kind], eps
        self.scale = nnx.Param(place(state["scale"], mesh, plan.params["scale"]))
        self.bias = nnx.Param(place(state["b"], mesh, plan.params["bias"])) if "b" in state else None
        self.specs = plan.params["scale"], plan.params["bias"]


# ---------------------------------------------------------------------------------------------------------- auto


class AutoLayerNorm(nnx.LayerNorm):
    """Flax's own layer with the given state; the compiler sums the gradients of scale and b over sharded tokens."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, kind: str, eps: float) -> None:
        self.plan = plan
        super().__init__(
            *state["scale"].shape,
            epsilon=eps,
            use_bias="b" in state,
            use_fast_variance=False,  # the default, mean(x²) - mean², cancels where the mean is large
            param_dtype=state["scale"].dtype,
            scale_init=lambda *_: place(state["scale"], mesh, plan.params["scale"]),
            bias_init=lambda *_: place(state["b"], mesh, plan.params["bias"]),
            rngs=nnx.Rngs(0),
        )

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        return with_sharding_constraint(super().__call__(x_BSD), self.plan.y)


class AutoRmsNorm(nnx.RMSNorm):
    """The same for RMS norm; without `epsilon` Flax would use 1e-6, PyTorch the machine epsilon of x's dtype."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State, kind: str, eps: float) -> None:
        self.plan = plan
        super().__init__(
            *state["scale"].shape,
            epsilon=eps,
            param_dtype=state["scale"].dtype,
            scale_init=lambda *_: place(state["scale"], mesh, plan.params["scale"]),
            rngs=nnx.Rngs(0),
        )

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        return with_sharding_constraint(super().__call__(x_BSD), self.plan.y)


# --------------------------------------------------------------------------------------------------------- typed


class TypedNorm(ShardedNorm):
    """Each token is whole on its device, so y has the type of x. The gradient of a replicated parameter must be
    replicated too, so the sum over tokens of type [B, S@tp, D] becomes an all-reduce.
    """

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        scale_D = self.scale[...]
        b_D = None if self.bias is None else self.bias[...]
        return self.norm(x_BSD, scale_D, b_D, self.eps)


# -------------------------------------------------------------------------------------------------------- manual


class ManualNorm(ShardedNorm):
    """Per-device code: f on the parameters if the tokens are sharded."""

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        per_device = map_shards(
            self.body,
            in_specs=(self.plan.x, *self.specs),
            out_specs=self.plan.y,
        )
        return per_device(x_BSD, self.scale[...], None if self.bias is None else self.bias[...])

    def body(self, x: jax.Array, scale: jax.Array, b: jax.Array | None) -> jax.Array:
        if self.plan.x == SEQUENCE_SHARDED:  # x: [B, S/tp, D]
            scale = copy_to_tp(scale, "tp")  # [D]
            b = None if b is None else copy_to_tp(b, "tp")  # [D]
        return self.norm(x, scale, b, self.eps)


# The state by name, in sizes: state.py.
SHAPES = {"layer_norm": {"scale": "D", "b?": "D"}, "rms_norm": {"scale": "D"}}

STYLES = {
    "auto": {"layer_norm": AutoLayerNorm, "rms_norm": AutoRmsNorm},
    "typed": {"layer_norm": TypedNorm, "rms_norm": TypedNorm},
    "manual": {"layer_norm": ManualNorm, "rms_norm": ManualNorm},
}


def build(mesh: Mesh, style: str, plan: Plan, state: State, kind: str, eps: float) -> nnx.Module:
    """The layer in one of the three styles; `state`: scale [D] and, for a layer norm that has one, b [D].

    eps has no default, as the frameworks' defaults differ (layer norm: PyTorch 1e-5, Flax 1e-6).
    """
    check_plan(plan, PLANS)
    check_state(state, SHAPES[kind])

    return STYLES[style][kind](mesh, plan, state, kind, eps)
