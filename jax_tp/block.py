"""One layer of a transformer: attention and an MLP, each with a norm and a residual.

    pre-norm (GPT, ViT, Llama)    h = x + attention(norm1(x));   y = h + mlp(norm2(h))
    post-norm (BERT)              h = norm1(x + attention(x));   y = norm2(h + mlp(h))

    B batch   S sequence   D features   tp devices on the axis "tp"

                       megatron                    sequence_parallel
    x_BSD per device   [B, S, D]                   [B, S/tp, D]
    y_BSD per device   [B, S, D]                   [B, S/tp, D]
    forward            2 all-reduces of B*S*D      2 all-gathers and 2 reduce-scatters of B*S*D
    backward           2 all-reduces of B*S*D      2 all-gathers and 2 reduce-scatters of B*S*D, the norms' gradients

Dropout, active when a `step` is given, is that of GPT-2: on the attention probabilities, and on the output of either
sublayer before the residual is added. These are dropout layers number 3 n, 3 n + 1 and 3 n + 2 of the n-th block.

Every device computes the norms and the residuals for all tokens or, under sequence parallelism, for its own tokens: the
number of bytes sent is the same, and each device keeps 1/tp of the activations between the sublayers.

Sources: Megatron-LM, https://arxiv.org/abs/1909.08053, section 3; sequence parallelism,
https://arxiv.org/abs/2205.05198, section 4.2.2; BERT, https://arxiv.org/abs/1810.04805; Llama,
https://arxiv.org/abs/2302.13971.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import jax
from flax import nnx
from jax.sharding import Mesh

from jax_tp import attention, dropout, mlp, norm, swiglu
from jax_tp.layouts import Plan, State, child
from jax_tp.state import check_plan, check_state, under

PLANS = {
    plan: Plan(
        x=norm.PLANS[norm_plan].x,
        y=norm.PLANS[norm_plan].y,
        inputs=dropout.PLANS[norm_plan].inputs,
        children={
            "norm1": norm.PLANS[norm_plan],
            "attention": attention.PLANS[plan],
            "norm2": norm.PLANS[norm_plan],
            "dropout": dropout.PLANS[norm_plan],
            "mlp": mlp.PLANS[plan],
            "swiglu": swiglu.PLANS[plan],
        },
    )
    for plan, norm_plan in (("megatron", "replicated"), ("sequence_parallel", "sequence_parallel"))
}


class Block(nnx.Module):
    """The sublayers in the given style; the norms and residuals between them have the layout of x."""

    layers: ClassVar[Mapping[str, ModuleType]] = {"norm": norm, "attention": attention, "mlp": mlp, "swiglu": swiglu}

    def __init__(
        self,
        mesh: Mesh,
        style: str,
        plan: Plan,
        state: State,
        num_heads: int,
        num_kv_heads: int,
        causal: bool,
        rope_theta: float | None,
        norm_kind: str,
        eps: float,
        activation: str,
        is_post_norm: bool = False,
        drop_rate: float = 0.0,
        seed: int = 0,
        number: int = 0,
    ) -> None:
        self.is_post_norm, plans, layers = is_post_norm, plan.children, self.layers
        heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "causal": causal, "rope_theta": rope_theta}
        if drop_rate and "dropout" not in plans:
            raise ValueError(f"drop_rate={drop_rate}: a block on a grid has no dropout; 0 would work")
        if drop_rate:
            heads |= {"drop_rate": drop_rate, "seed": seed, "layer": 3 * number}
        if "dropout" in plans:  # not on a grid
            drops = {"rate": drop_rate, "seed": seed}
            self.drop1 = dropout.build(mesh, style, plans["dropout"], {}, **drops, layer=3 * number + 1)
            self.drop2 = dropout.build(mesh, style, plans["dropout"], {}, **drops, layer=3 * number + 2)
        normalisation = {"kind": norm_kind, "eps": eps}
        self.norm1 = layers["norm"].build(mesh, style, plans["norm1"], child(state, "norm1"), **normalisation)
        self.attention = layers["attention"].build(mesh, style, plans["attention"], child(state, "attention"), **heads)
        self.norm2 = layers["norm"].build(mesh, style, plans["norm2"], child(state, "norm2"), **normalisation)
        if activation == "swiglu":
            self.mlp = layers["swiglu"].build(mesh, style, plans["swiglu"], child(state, "mlp"))
        else:
            self.mlp = layers["mlp"].build(mesh, style, plans["mlp"], child(state, "mlp"), activation)

    def attended(self, h_BSD: jax.Array, step: jax.Array | None) -> jax.Array:
        """attention(h_BSD), with dropout if there is a step."""
        return self.attention(h_BSD) if step is None else self.drop1(self.attention(h_BSD, step), step)

    def fed_forward(self, h_BSD: jax.Array, step: jax.Array | None) -> jax.Array:
        """mlp(h_BSD), with dropout if there is a step."""
        return self.mlp(h_BSD) if step is None else self.drop2(self.mlp(h_BSD), step)

    def __call__(self, x_BSD: jax.Array, step: jax.Array | None = None) -> jax.Array:
        if self.is_post_norm:
            h_BSD = self.norm1(x_BSD + self.attended(x_BSD, step))
            return self.norm2(h_BSD + self.fed_forward(h_BSD, step))
        h_BSD = x_BSD + self.attended(self.norm1(x_BSD), step)
        return h_BSD + self.fed_forward(self.norm2(h_BSD), step)


def shapes_of(state: State, norm_kind: str, activation: str) -> dict[str, str]:
    """The state by name, in sizes: state.py; that of a gated MLP is packed or not."""
    gated = swiglu.PACKED if swiglu.is_packed(child(state, "mlp")) else swiglu.SEPARATE
    return {
        **under("norm1", norm.SHAPES[norm_kind]),
        **under("attention", attention.SHAPES),
        **under("norm2", norm.SHAPES[norm_kind]),
        **under("mlp", gated if activation == "swiglu" else mlp.SHAPES),
    }


STYLES = {"auto": Block, "typed": Block, "manual": Block}


def build(mesh: Mesh, style: str, plan: Plan, state: State, **options: Any) -> nnx.Module:
    """The block in one of the three styles; `state`: those of norm1, attention, norm2 and mlp, under these names.

    options: those of `Block`; activation: of the MLP, or "swiglu" for the gated one; drop_rate: of the dropout, active
    when a step is given; number: of the block in the model, from 0. Raises ValueError as `attention.build` does.
    """
    check_plan(plan, PLANS)
    heads = {"H": options["num_heads"], "K": options["num_kv_heads"]}
    check_state(state, shapes_of(state, options["norm_kind"], options["activation"]), heads)

    return STYLES[style](mesh, style, plan, state, **options)
