"""Cases of attention: y = (softmax(q k^T / sqrt E) v) w_o + b_o; x [B, S, D], H heads of E features, K of keys."""

from dataclasses import replace

from parity.cases.family import Family, Variant
from parity.cases.linear import LOSS_SP, OWN_TOKENS
from parity.cases.notation import Expected

DIMS = {"B": 3, "S": 5, "D": 20, "H": 12, "K": 12, "E": 6}  # sqrt E is irrational, as it is for most models
GROUPED = {"H": 24, "K": 12}

ROUNDED = ("float64", "float32", "bfloat16")  # the softmax of integers is not exact
SIZES = {"num_heads": "H", "num_kv_heads": "K"}
WEIGHTS = ("q.w", "k.w", "v.w", "o.w")
BIASES = ("q.b", "k.b", "v.b", "o.b")

FUSED = ("qkv.w", "qkv.b", "o.w", "o.b")

BIDIRECTIONAL = {"causal": False, "rope_theta": None}
CAUSAL = {"causal": True, "rope_theta": None}
LLAMA = {"causal": True, "rope_theta": 10000.0}

Y = Expected("all_reduce", "tp", "forward", "B*S*D", "y = h w_o sums over H, which is sharded")
DX = Expected("all_reduce", "tp", "backward", "B*S*D", "dx = dq w_q^T + dk w_k^T + dv w_v^T: summed, then sent once")

OWN = "each replica has the gradient of its own queries: the sum over the replicas is that of the weight"

SEPARATE = {
    "q.w": "D H*E@tp",
    "q.b": "H*E@tp",
    "k.w": "D K*E@tp",
    "k.b": "K*E@tp",
    "v.w": "D K*E@tp",
    "v.b": "K*E@tp",
    "o.w": "H*E@tp D",
    "o.b": "D",
}
SEPARATE_VARIANTS = (
    Variant("multi_head", BIDIRECTIONAL, ROUNDED, (*WEIGHTS, *BIASES), sizes=SIZES),
    Variant("multi_head_causal", CAUSAL, ROUNDED, (*WEIGHTS, *BIASES), sizes=SIZES),
    Variant("grouped_causal_rope", LLAMA, ROUNDED, WEIGHTS, dims=GROUPED, sizes=SIZES),
    Variant(
        "multi_head_causal_dropout",
        {**CAUSAL, "drop_rate": 0.1, "seed": 2026, "layer": 1},
        ROUNDED,
        (*WEIGHTS, *BIASES),
        ("step",),
        dims={"N": 1_000_000},  # the number of the step is below
        sizes=SIZES,
    ),
)

FAMILIES = (
    Family(
        layer="attention",
        plan="megatron",
        dims=DIMS,
        tensors={"x": "B S D", "y": "B S D", "step": "", **SEPARATE},
        ids={"step": "N"},
        collectives=(Y, DX),
        variants=SEPARATE_VARIANTS,
    ),
    Family(
        layer="attention",
        plan="sequence_parallel",
        dims={**DIMS, "S": 12},
        tensors={"x": "B S@tp D", "y": "B S@tp D", "step": "", **SEPARATE},
        ids={"step": "N"},
        collectives=(
            LOSS_SP,
            Expected("all_gather", "tp", "forward", "B*S*D", "every query may see every token: x is gathered, once"),
            Expected("reduce_scatter", "tp", "forward", "B*S*D", "y = h w_o sums over H, each device keeps its tokens"),
            Expected("all_gather", "tp", "backward", "B*S*D", "the transpose of the reduce-scatter"),
            Expected("reduce_scatter", "tp", "backward", "B*S*D", "the transpose of the gather, dx is summed first"),
            Expected("all_reduce", "tp", "backward", "D", f"db_o {OWN_TOKENS}", param="o.b"),
        ),
        variants=SEPARATE_VARIANTS,
    ),
    Family(
        layer="fused_attention",
        plan="contiguous",
        dims=DIMS,
        tensors={
            "x": "B S D",
            "y": "B S D",
            "qkv.w": "D 3 H*E@tp",
            "qkv.b": "3 H*E@tp",
            "o.w": "H*E@tp D",
            "o.b": "D",
        },
        collectives=(Y, DX),
        variants=(
            Variant("contiguous", BIDIRECTIONAL, ROUNDED, FUSED, sizes=SIZES),
            Variant("contiguous_causal_no_bias", CAUSAL, ROUNDED, ("qkv.w", "o.w"), sizes=SIZES),
        ),
    ),
    Family(
        layer="fused_attention",
        plan="per_head",
        dims=DIMS,
        tensors={
            "x": "B S D",
            "y": "B S D",
            "qkv.w": "D K*(H//K+2)*E@tp",
            "qkv.b": "K*(H//K+2)*E@tp",
            "o.w": "H*E@tp D",
            "o.b": "D",
        },
        collectives=(Y, DX),
        variants=(
            Variant("per_head", BIDIRECTIONAL, ROUNDED, FUSED, sizes=SIZES),
            Variant("per_head_grouped_causal_rope", LLAMA, ROUNDED, ("qkv.w", "o.w"), dims=GROUPED, sizes=SIZES),
        ),
    ),
    Family(
        layer="replicated_kv",
        plan="megatron",
        dims={**DIMS, "K": 2},
        tensors={
            "x": "B S D",
            "y": "B S D",
            "q.w": "D H*E@kv+rep",
            "q.b": "H*E@kv+rep",
            "k.w": "D K*E@kv",
            "k.b": "K*E@kv",
            "v.w": "D K*E@kv",
            "v.b": "K*E@kv",
            "o.w": "H*E@kv+rep D",
            "o.b": "D",
        },
        collectives=(
            replace(Y, axis="kv+rep"),
            replace(DX, axis="kv+rep"),
            *(Expected("all_reduce", "rep", "backward", "D*K*E//kv", OWN, f"{name}.w") for name in "kv"),
            *(Expected("all_reduce", "rep", "backward", "K*E//kv", OWN, f"{name}.b") for name in "kv"),
        ),
        variants=(
            Variant("replicated", BIDIRECTIONAL, ROUNDED, (*WEIGHTS, *BIASES), sizes=SIZES),
            Variant("replicated_causal_rope", LLAMA, ROUNDED, WEIGHTS, sizes=SIZES),
        ),
    ),
)
