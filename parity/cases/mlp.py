"""Cases of the MLP: y = act(x w_up + b_up) w_down + b_down, x [B, S, D], w_up [D, F], w_down [F, D]."""

from dataclasses import replace

from parity.cases.family import TRAINING, Family, Variant
from parity.cases.linear import LOSS_SP, OWN_TOKENS
from parity.cases.notation import Expected

DIMS = {"B": 3, "S": 5, "D": 24, "F": 48}

DIMS_SP = {"B": 2, "S": 12, "D": 24, "F": 48}  # S is sharded too

ROUNDED = ("float64", "float32", "bfloat16")
# The slope of ReLU jumps at 0: there a rounding error decides whether a gradient passes, which no error bound can
# cover. So ReLU is judged where that cannot happen: on integers, and in float64, where it has odds of 1e-12.
KINKED = ("float64", "exact-float32", "exact-bfloat16")
PARAMS = ("up.w", "up.b", "down.w", "down.b")

VARIANTS = (
    Variant("gelu_erf", {"activation": "gelu_erf"}, ROUNDED, PARAMS),
    Variant("gelu_tanh", {"activation": "gelu_tanh"}, ROUNDED, PARAMS),
    Variant("relu", {"activation": "relu"}, KINKED, PARAMS),
    Variant("gelu_erf_no_bias", {"activation": "gelu_erf"}, ROUNDED, ("up.w", "down.w")),
    Variant(
        "gelu_erf_dropout",
        {"activation": "gelu_erf", "drop_rate": 0.1, "seed": 2026, "layer": 1},
        ROUNDED,
        PARAMS,
        ("step",),
        dims={"N": 1_000_000},  # the number of the step is below
    ),
)

TRAINED = ("gelu_erf", "gelu_erf_dropout")

WEIGHTS = {"up.w": "D F@tp", "up.b": "F@tp", "down.w": "F@tp D", "down.b": "D"}

# Of any layer whose features in between are sharded.
MEGATRON = (
    Expected("all_reduce", "tp", "forward", "B*S*D", "y = h w_down sums over F, which is sharded"),
    Expected("all_reduce", "tp", "backward", "B*S*D", "dx = dh w_up^T sums over F, which is sharded", of_input=True),
)
# The same where x and y are sharded on S and whose features in between are sharded.
SEQUENCE_PARALLEL = (
    Expected("all_gather", "tp", "forward", "B*S*D", "each device takes x of all tokens to its own features"),
    Expected("reduce_scatter", "tp", "forward", "B*S*D", "y = h w_down sums over F, for each device's tokens"),
    LOSS_SP,
    Expected("all_gather", "tp", "backward", "B*S*D", "dh and dw_down take dy of all tokens"),
    Expected("reduce_scatter", "tp", "backward", "B*S*D", "dx = dh w_up^T sums over F, for each device's tokens"),
    Expected("all_reduce", "tp", "backward", "D", f"db_down {OWN_TOKENS}", param="down.b", of_tokens=True),
)

FAMILIES = (
    Family(
        layer="mlp",
        plan="megatron",
        dims=DIMS,
        tensors={"x": "B S D", "y": "B S D", "step": "", **WEIGHTS},
        ids={"step": "N"},
        collectives=MEGATRON,
        variants=tuple(
            replace(one, numerics=(*one.numerics, *TRAINING)) if one.name in TRAINED else one for one in VARIANTS
        ),
    ),
    Family(
        layer="mlp",
        plan="sequence_parallel",
        dims=DIMS_SP,
        tensors={"x": "B S@tp D", "y": "B S@tp D", "step": "", **WEIGHTS},
        ids={"step": "N"},
        collectives=SEQUENCE_PARALLEL,
        variants=VARIANTS,
    ),
)
