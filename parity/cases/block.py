"""Cases of a transformer block: y = h + mlp(norm2(h)), h = x + attention(norm1(x)), x [B, S, D]; post-norm for BERT."""

from parity.cases import attention, mlp, swiglu
from parity.cases.family import Family, Variant
from parity.cases.linear import LOSS_SP, OWN_TOKENS
from parity.cases.notation import Expected

DIMS = {"B": 2, "S": 12, "D": 20, "H": 12, "K": 12, "E": 6, "F": 48}

ROUNDED = ("float64", "float32", "bfloat16")
SIZES = {"num_heads": "H", "num_kv_heads": "K"}

GPT = {"causal": True, "rope_theta": None, "norm_kind": "layer_norm", "eps": 1e-5, "activation": "gelu_tanh"}
VIT = {**GPT, "causal": False, "activation": "gelu_erf"}
BERT = {**VIT, "is_post_norm": True, "eps": 1e-12}
LLAMA = {"causal": True, "rope_theta": 10000.0, "norm_kind": "rms_norm", "eps": 1e-5, "activation": "swiglu"}
DROPPED = {"drop_rate": 0.1, "seed": 2026, "number": 1}  # of the probabilities of attention, and before each residual
STEPS = {"N": 1_000_000}  # the number of the step, an input, is below

SUBLAYERS = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.up", "mlp.down")
WITH_BIAS = (
    *(f"{name}.{leaf}" for name in ("norm1", "norm2") for leaf in ("scale", "b")),
    *(f"{name}.{leaf}" for name in SUBLAYERS for leaf in ("w", "b")),
)
WITHOUT_BIAS = ("norm1.scale", "norm2.scale", *(f"{name}.w" for name in SUBLAYERS), "mlp.gate.w")

VARIANTS = (
    Variant("gpt", GPT, ROUNDED, WITH_BIAS, sizes=SIZES),
    Variant("vit", VIT, ROUNDED, WITH_BIAS, sizes=SIZES),
    Variant("bert", BERT, ROUNDED, WITH_BIAS, sizes=SIZES),
    Variant("llama", LLAMA, ROUNDED, WITHOUT_BIAS, dims=attention.GROUPED, sizes=SIZES),
    Variant("gpt_dropout", {**GPT, **DROPPED}, ROUNDED, WITH_BIAS, ("step",), dims=STEPS, sizes=SIZES),
)


def tensors_of(layer: Family, name: str) -> dict[str, str]:
    """The layouts of a sublayer's parameters, under the block's names."""
    return {f"{name}.{key}": layout for key, layout in layer.tensors.items() if key not in ("x", "y", "step")}


def family(families: tuple[Family, ...], plan: str) -> Family:
    """The family of a plan."""
    return next(family for family in families if family.plan == plan)


def sublayers(plan: str) -> dict[str, str]:
    """The layouts of all parameters that a block may have, which are those of its sublayers in the plan."""
    return {
        **{f"{name}.{leaf}": "D" for name in ("norm1", "norm2") for leaf in ("scale", "b")},
        **tensors_of(family(attention.FAMILIES, plan), "attention"),
        **tensors_of(family(swiglu.FAMILIES, plan), "mlp"),
        **tensors_of(family(mlp.FAMILIES, plan), "mlp"),
    }


# A parameter that each device uses for its own tokens: its gradient is a sum over those of all. XLA widens those of
# norms before it sums them, and not those of biases.
OF_TOKENS = ("norm1.scale", "norm1.b", "attention.o.b", "norm2.scale", "norm2.b", "mlp.down.b")

FAMILIES = (
    Family(
        layer="block",
        plan="megatron",
        dims=DIMS,
        tensors={"x": "B S D", "y": "B S D", "step": "", **sublayers("megatron")},
        ids={"step": "N"},
        collectives=(
            Expected("all_reduce", "tp", "forward", "B*S*D", "attention: its output projection sums over heads"),
            Expected("all_reduce", "tp", "forward", "B*S*D", "mlp: its down projection sums over F"),
            Expected("all_reduce", "tp", "backward", "B*S*D", "mlp: dx sums over F"),
            Expected("all_reduce", "tp", "backward", "B*S*D", "attention: dx sums over heads, once for q, k and v"),
        ),
        variants=VARIANTS,
    ),
    Family(
        layer="block",
        plan="sequence_parallel",
        dims=DIMS,
        tensors={"x": "B S@tp D", "y": "B S@tp D", "step": "", **sublayers("sequence_parallel")},
        ids={"step": "N"},
        collectives=(
            LOSS_SP,
            *(
                Expected(kind, "tp", pass_, "B*S*D", f"{sublayer}: {reason}")
                for sublayer in ("attention", "mlp")
                for kind, pass_, reason in (
                    ("all_gather", "forward", "every device needs all tokens"),
                    ("reduce_scatter", "forward", "y is a sum over devices, each keeps its tokens"),
                    ("all_gather", "backward", "the transpose of the reduce-scatter"),
                    ("reduce_scatter", "backward", "the transpose of the all-gather"),
                )
            ),
            *(
                Expected(
                    "all_reduce",
                    "tp",
                    "backward",
                    "D",
                    f"d{name} {OWN_TOKENS}",
                    param=name,
                    of_tokens=name.startswith("norm"),
                )
                for name in OF_TOKENS
            ),
        ),
        variants=VARIANTS,
    ),
)
