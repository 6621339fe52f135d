"""Cases of the ViT: y = latitude-weighted error of the predicted field, or mean cross entropy of the classes; a scalar.

x and truth are [B, C, I, J], cut into T = I/P * J/P patches of C*P*P numbers. N=10 classes, which tp=4 does not divide,
and V=12 logits.
"""

from dataclasses import replace

from parity.cases import block, cross_entropy
from parity.cases.family import Family, Variant
from parity.cases.models import NUM_BLOCKS, ROUNDED, stacked
from parity.cases.notation import Expected

DIMS = {"B": 2, "C": 3, "I": 6, "J": 8, "P": 2, "D": 24, "H": 12, "K": 12, "E": 6, "F": 48}
SIZES = {**block.SIZES, "patch": "P"}

TOKENS = "(I//P)*(J//P)"
LAYOUTS = block.sublayers("megatron")
TENSORS = {
    "x": "B C I J",
    "y": "",
    "embed.w": "(C*P*P) D",
    "embed.b": "D",
    "positions.table": f"{TOKENS} D",
    **{name: LAYOUTS[name.split(".", 2)[2]] for name in stacked(block.WITH_BIAS)},
    "norm.scale": "D",
    "norm.b": "D",
}
BLOCKS = tuple(
    replace(formula, elements=f"B*{TOKENS}*D")
    for formula in block.family(block.FAMILIES, "megatron").collectives * NUM_BLOCKS
)
PARAMS = (*(name for name in TENSORS if name not in ("x", "y")), "head.w", "head.b")

FAMILIES = (
    Family(
        layer="models.vit",
        plan="field",
        dims=DIMS,
        tensors={**TENSORS, "truth": "B C I J", "head.w": "D (C*P*P)@tp", "head.b": "(C*P*P)@tp"},
        collectives=(
            *BLOCKS,
            Expected(
                "all_reduce", "tp", "forward", "1", "the error sums over C*P*P, which is sharded", in_float32=True
            ),
            Expected(
                "all_reduce", "tp", "backward", f"B*{TOKENS}*D", "head: dh = derror w^T sums over C*P*P of all devices"
            ),
        ),
        variants=(Variant("weather", block.VIT, ROUNDED, PARAMS, sizes=SIZES),),
        batch=("x", "truth"),
        in_float32=("y",),
        multiples={"I": "P", "J": "P"},
    ),
    Family(
        layer="models.vit",
        plan="classes",
        dims={**DIMS, "C": 1, "I": 8, "V": 12, "N": 10},
        tensors={**TENSORS, "labels": "B", "head.w": "D V@tp", "head.b": "V@tp"},
        collectives=(
            *BLOCKS,
            *(replace(formula, elements="B") for formula in cross_entropy.FAMILIES[0].collectives),
            Expected("all_reduce", "tp", "backward", "B*D", "head: dh = dlogits w^T sums over V, which is sharded"),
        ),
        variants=(Variant("digits", block.VIT, ROUNDED, PARAMS, sizes={**SIZES, "num_classes": "N"}),),
        batch=("x", "labels"),
        ids={"labels": "N"},
        in_float32=("y",),
        multiples={"I": "P", "J": "P"},
    ),
)
