"""Cases of the ViT: y = latitude-weighted error of the predicted field, or mean cross entropy of the classes; a scalar.

x and truth are [B, C, I, J], cut into T = I/P * J/P patches of C*P*P numbers. N=10 classes, which tp=4 does not divide,
and V=12 logits. T=12 tokens of the field and 16 of the classes, 24 where tp=3 has to divide them.
"""

from collections.abc import Mapping
from dataclasses import replace

from parity.cases import block, cross_entropy, tied
from parity.cases.family import TRAINING, Family, Variant
from parity.cases.models import (
    NUM_BLOCKS,
    ROUNDED,
    blocks_of,
    of_own_tokens,
    sent_by_blocks,
    stacked,
    with_dropout,
)
from parity.cases.notation import Expected

DIMS = {"B": 2, "C": 3, "I": 6, "J": 8, "P": 2, "D": 24, "H": 12, "K": 12, "E": 6, "F": 48}
SIZES = {**block.SIZES, "patch": "P"}

TOKENS = "(I//P)*(J//P)"
PATCHES = {"x": "B C I J", "y": "", "embed.w": "(C*P*P) D", "embed.b": "D", "positions.table": f"{TOKENS} D"}


def over_tokens(formula: Expected) -> Expected:
    """The same of a sequence of T tokens."""
    return replace(formula, elements=formula.elements.replace("S", TOKENS))


# What a ViT of shared-out tokens sends before its blocks and after them.
BESIDE = {
    "megatron": (),
    "sequence_parallel": (
        Expected(
            "all_gather", "tp", "backward", f"B*{TOKENS}*C*P*P", "dx of the own patches of all devices", of_input=True
        ),
        Expected("all_gather", "tp", "backward", f"{TOKENS}*D", "the rows of all tokens' gradients"),
        of_own_tokens("embed.w", "C*P*P*D", False),
        of_own_tokens("embed.b", "D", False),
        of_own_tokens("norm.scale", "D", True),
        of_own_tokens("norm.b", "D", True),
    ),
}


def vit(
    task: str,
    plan: str,
    num_blocks: int,
    dims: Mapping[str, int],
    tensors: Mapping[str, str],
    collectives: tuple[Expected, ...],
    variant: Variant,
) -> Family:
    """The family of a ViT; tensors: what it has beside patches, blocks and norm; collectives: of head and loss.

    task: "field" or "classes"; plan: of the blocks.
    """
    params = (*stacked(block.WITH_BIAS, num_blocks), "norm.scale", "norm.b", "head.w", "head.b")
    layouts = blocks_of(num_blocks)
    return Family(
        layer="models.vit",
        plan=task if plan == "megatron" else f"{task}_{plan}",
        dims=dims,
        tensors={**PATCHES, **layouts, "norm.scale": "D", "norm.b": "D", **tensors},
        inside={"h": f"B ({TOKENS})@tp D"} if plan == "sequence_parallel" else {},
        collectives=(*map(over_tokens, sent_by_blocks(plan, num_blocks)), *BESIDE[plan], *collectives),
        variants=(replace(variant, params=("embed.w", "embed.b", "positions.table", *params)),),
        batch=("x", *(name for name in ("truth", "labels") if name in tensors)),
        ids={"labels": "N"} if "labels" in tensors else {},
        in_float32=("y",),
        multiples={"I": "P", "J": "P"},
    )


def field(num_blocks: int = NUM_BLOCKS, plan: str = "megatron") -> Family:
    """The ViT that predicts a field, with this many blocks."""
    reason = "head: dh = derror w^T sums over C*P*P of all devices"
    head = {
        "megatron": (Expected("all_reduce", "tp", "backward", "B*S*D", reason),),
        "sequence_parallel": tied.HEAD_SP,
    }
    return vit(
        "field",
        plan,
        num_blocks,
        DIMS,
        {"truth": "B C I J", "head.w": "D (C*P*P)@tp", "head.b": "(C*P*P)@tp"},
        (
            Expected(
                "all_reduce", "tp", "forward", "1", "the error sums over C*P*P, which is sharded", in_float32=True
            ),
            *map(over_tokens, head[plan]),
        ),
        Variant("weather", block.VIT, (*ROUNDED, *TRAINING), (), sizes=SIZES, max_norm=0.6),
    )


def classes(num_blocks: int = NUM_BLOCKS, plan: str = "megatron") -> Family:
    """The ViT that predicts a class, with this many blocks."""
    reason = "head: dh = dlogits w^T sums over V, which is sharded"
    mean = {
        "megatron": (),
        "sequence_parallel": (
            Expected("all_reduce", "tp", "forward", "B*D", "the mean sums over all tokens", of_tokens=True),
        ),
    }
    max_norm = {"megatron": 2.6, "sequence_parallel": 2.0}  # of the gradient: where some steps are clipped
    return vit(
        "classes",
        plan,
        num_blocks,
        {**DIMS, "C": 1, "I": 8, "V": 12, "N": 10, **({"J": 12} if plan == "sequence_parallel" else {})},
        {"labels": "B", "head.w": "D V@tp", "head.b": "V@tp"},
        (
            *(replace(formula, elements="B") for formula in cross_entropy.FAMILIES[0].collectives),
            Expected("all_reduce", "tp", "backward", "B*D", reason),
            *mean[plan],
        ),
        Variant(
            "digits", block.VIT, (*ROUNDED, *TRAINING), (), sizes={**SIZES, "num_classes": "N"}, max_norm=max_norm[plan]
        ),
    )


FAMILIES = tuple(with_dropout(model(plan=plan)) for plan in BESIDE for model in (field, classes))
