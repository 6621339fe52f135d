"""Cases of whole models on the grid: GPT and ViT as in `models`, y a scalar; blocks on the grid (grid_block.py)."""

from dataclasses import replace

from parity.cases import block, grid_block
from parity.cases.family import TRAINING, Family, Variant
from parity.cases.grid_layers import (
    DIMS,
    HEADS,
    HEADS_OF_TABLE,
    LOOKUPS,
    ROUNDED,
    affine,
    cross_entropy_collectives,
    into,
    norm_collectives,
)
from parity.cases.grid_product import of_rows
from parity.cases.models import NUM_BLOCKS, stacked
from parity.cases.notation import Expected

SIZES = block.SIZES
# XLA adds up the gradients of microbatches before it sums them over tokens: less than a step for each would send.
ONE_BATCH = {"num_microbatches": 1}
TOKENS = "(I//P)*(J//P)"


def _blocks(algorithm: str, num_blocks: int) -> tuple[Expected, ...]:
    return tuple(one for i in range(num_blocks) for one in grid_block.collectives(algorithm, f"blocks.{i}."))


def _layouts(algorithm: str, num_blocks: int) -> dict[str, str]:
    own = grid_block.layouts(algorithm)
    return {
        **{name: own[name.split(".", 2)[2]] for name in stacked(tuple(own), num_blocks)},
        "norm.scale": "D@y",
        "norm.b": "D@y",
    }


def of_image(formulas: tuple[Expected, ...]) -> tuple[Expected, ...]:
    """The same for T patches in place of S tokens."""
    return tuple(replace(one, elements=one.elements.replace("S", TOKENS)) for one in formulas)


def gpt(num_blocks: int = NUM_BLOCKS, plan: str = "summa") -> Family:
    """GPT with this many blocks; plan: the algorithm, "summa" or "stationary"."""
    algorithm = plan
    return Family(
        layer="grid.models.gpt",
        plan=plan,
        dims={**DIMS, **HEADS, "V": 36, "N": 30, "C": 5},
        tensors={
            "x": "B@x S",
            **into(algorithm, {"labels": "B@x S"}),
            "y": "",
            "tied.embed.table": "V@x D@y",
            "positions.table": "C D@y",
            **_layouts(algorithm, num_blocks),
        },
        collectives=(
            *LOOKUPS[algorithm],
            of_rows("positions.table", "S*(D//y)"),
            *_blocks(algorithm, num_blocks),
            *norm_collectives("norm."),
            *(replace(one, param="") for one in HEADS_OF_TABLE[algorithm]),
            *cross_entropy_collectives(algorithm == "stationary"),
        ),
        variants=(
            Variant(
                "gpt2",
                block.GPT,
                (*ROUNDED, *TRAINING),
                ("tied.embed.table", "positions.table", *stacked(block.WITH_BIAS, num_blocks), "norm.scale", "norm.b"),
                sizes={**SIZES, "num_ids": "N"},
                max_norm=1.0,
            ),
        ),
        batch=("x", "labels"),
        ids={"x": "N", "labels": "N"},
        ignored={"labels": -100},
        in_float32=("y",),
        styles=("manual",),
        recipe=ONE_BATCH,
    )


def vit(num_blocks: int = NUM_BLOCKS, plan: str = "field_summa") -> Family:
    """ViT with this many blocks; plan: the task, "field" or "classes", and the algorithm."""
    task, algorithm = plan.split("_")
    is_field = task == "field"
    out, tokens = ("(C*P*P)", f"B*{TOKENS}") if is_field else ("V", "B")
    error = Expected("all_reduce", "x+y", "forward", "1", "the error sums over batch and C*P*P", in_float32=True)
    head = affine(algorithm, "D", {"head": out}, is_into=True)
    params = ("embed.w", "embed.b", "positions.table", *stacked(block.WITH_BIAS, num_blocks), "norm.scale", "norm.b")
    data = {"truth": "B@x C I J"} if is_field else {"labels": "B@x"}
    return Family(
        layer="grid.models.vit",
        plan=plan,
        dims={**DIMS, **HEADS, "C": 3, "I": 6, "J": 4, "P": 2, **({} if is_field else {"V": 12, "N": 10})},
        tensors={
            "x": "B@x C I J",
            "y": "",
            "embed.w": "(C*P*P)@x D@y",
            "embed.b": "D@y",
            "positions.table": f"{TOKENS} D@y",
            **_layouts(algorithm, num_blocks),
            **into(algorithm, {**data, "head.w": f"D@x {out}@y", "head.b": f"{out}@y"}),
        },
        collectives=(
            Expected("all_gather", "x", "forward", "C*P*P*(D//y)", "embed: whole columns of w for whole patches"),
            Expected("reduce_scatter", "x", "backward", "C*P*P*(D//y)", "embed: dw sums over the batch, sharded"),
            of_rows("embed.b", "D//y"),
            Expected("all_reduce", "y", "backward", f"B//x*{TOKENS}*C*P*P", "embed: dx sums over D", of_input=True),
            of_rows("positions.table", f"{TOKENS}*(D//y)"),
            *of_image(_blocks(algorithm, num_blocks)),
            *of_image(norm_collectives("norm.")),
            *(replace(one, elements=one.elements.replace("B*S", tokens)) for one in head),
            *((error,) if is_field else cross_entropy_collectives(algorithm == "stationary", "B//{rows}")),
        ),
        variants=(
            Variant(
                "weather" if is_field else "digits",
                block.VIT,
                (*ROUNDED, *TRAINING),
                (*params, "head.w", "head.b"),
                sizes={**SIZES, "patch": "P"} if is_field else {**SIZES, "patch": "P", "num_classes": "N"},
                max_norm=0.9 if is_field else 1.7,
            ),
        ),
        batch=("x", *data),
        ids={} if is_field else {"labels": "N"},
        in_float32=("y",),
        styles=("manual",),
        recipe=ONE_BATCH,
        multiples={"I": "P", "J": "P"},
    )


FAMILIES = (
    *(gpt(plan=algorithm) for algorithm in LOOKUPS),
    *(vit(plan=f"{task}_{algorithm}") for task in ("field", "classes") for algorithm in LOOKUPS),
)
