"""Cases of whole models: y = mean cross entropy of the logits over the labels, a scalar; ids x, labels [B, S].

N=30 ids, which tp=4 does not divide, and V=36 rows and logits. Every fourth label is ignored. GPT and BERT have
C=8 positions, of which S=6 are used; under sequence parallelism C=14 and S=12, which 2, 3 and 4 divide. With dropout
there is the number of a step, below M.
"""

from collections.abc import Mapping
from dataclasses import replace

from parity.cases import attention, block, cross_entropy, embedding, tied
from parity.cases.family import TRAINING, Family, Variant
from parity.cases.linear import LOSS_SP, OWN_TOKENS
from parity.cases.notation import Expected

NUM_BLOCKS = 2  # of the cases; presets have others
DIMS = {"B": 2, "D": 24, "H": 12, "K": 12, "E": 6, "F": 48, "V": 36, "N": 30}
LENGTHS = {"megatron": {"S": 6, "C": 8}, "sequence_parallel": {"S": 12, "C": 14}}

ROUNDED = ("float64", "float32", "bfloat16")
SIZES = {**block.SIZES, "num_ids": "N"}
DROPPED = {"drop_rate": 0.1, "seed": 2026}
STEPS = {"M": 1_000_000}


def stacked(names: tuple[str, ...], num_blocks: int) -> tuple[str, ...]:
    """A block's parameters, under the names that they have in a model."""
    return tuple(f"blocks.{i}.{name}" for i in range(num_blocks) for name in names)


LOSS = block.family(cross_entropy.FAMILIES, "vocab_parallel")
LAYOUTS = block.sublayers("megatron")

HEAD = {"head.w": "D D", "head.b": "D", "head_norm.scale": "D", "head_norm.b": "D", "vocab.b": "V@tp"}
TIED = {"tied.embed.table": "V@tp D", "positions.table": "C D"}


def sent_by_blocks(plan: str, num_blocks: int) -> tuple[Expected, ...]:
    """What the blocks send; the loss of a model is summed by the model's own."""
    one = [formula for formula in block.family(block.FAMILIES, plan).collectives if formula != LOSS_SP]
    return tuple(
        replace(formula, param=formula.param and f"blocks.{i}.{formula.param}")
        for i in range(num_blocks)
        for formula in one
    )


def of_own_tokens(name: str, size: str, of_tokens: bool) -> Expected:
    """The sum of the gradients of a parameter that each device uses for its own tokens, if the model has it."""
    return Expected("all_reduce", "tp", "backward", size, f"d{name} {OWN_TOKENS}", param=name, of_tokens=of_tokens)


# What a language model sends beside its blocks and its loss.
BESIDE = {
    "megatron": (
        Expected("all_reduce", "tp", "forward", "B*S*D", "embedding: each device has its own ids' rows, 0 for others"),
        Expected("all_reduce", "tp", "backward", "B*S*D", "head: dh = dlogits w^T sums over V, which is sharded"),
    ),
    "sequence_parallel": (
        *embedding.SEQUENCE_PARALLEL,
        *tied.HEAD_SP,
        Expected("all_gather", "tp", "backward", "S*D", "the rows of all tokens' gradients", param="positions.table"),
        *(of_own_tokens(name, "D", True) for name in ("norm.scale", "norm.b", "head_norm.scale", "head_norm.b")),
        # Of BERT's head; that of Llama is column-parallel.
        *(
            replace(of_own_tokens(f"head.{leaf}", size, False), param="head.b")
            for leaf, size in (("w", "D*D"), ("b", "D"))
        ),
    ),
}


def blocks_of(num_blocks: int) -> dict[str, str]:
    """The layouts of all parameters that the blocks may have."""
    return {name: LAYOUTS[name.split(".", 2)[2]] for name in stacked(tuple(LAYOUTS), num_blocks)}


def with_dropout(family: Family) -> Family:
    """The family of a model, and each of its variants with dropout too; that sends nothing."""
    dropped = (
        replace(
            variant,
            name=f"{variant.name}_dropout",
            options={**variant.options, **DROPPED},
            inputs=("step",),
            dims={**variant.dims, **STEPS},
        )
        for variant in family.variants
    )
    tensors, ids = {**family.tensors, "step": ""}, {**family.ids, "step": "M"}
    return replace(family, tensors=tensors, ids=ids, variants=(*family.variants, *dropped))


def language_model(layer: str, plan: str, num_blocks: int, tensors: Mapping[str, str], variant: Variant) -> Family:
    """The family of a language model; tensors: what it has beside blocks and norm.

    It sends B*S*D elements 1 + 2 L times forward and as often backward, and B*S three times: nothing else. Under
    sequence parallelism B*S*D elements 1 + 2 L times gathered and as often reduce-scattered, forward and backward, B*S
    three times, the S*D of the positions, and the gradients of what each device uses for its own tokens.
    """
    lengths = LENGTHS[plan] if "positions.table" in tensors else {"S": LENGTHS[plan]["S"]}
    return Family(
        layer=layer,
        plan=plan,
        dims={**DIMS, **lengths},
        tensors={
            "x": "B S",
            "labels": "B S",
            "y": "",
            **blocks_of(num_blocks),
            "norm.scale": "D",
            "norm.b": "D",
            **tensors,
        },
        inside={"h": "B S@tp D"} if plan == "sequence_parallel" else {},
        collectives=(*BESIDE[plan], *sent_by_blocks(plan, num_blocks), *LOSS.collectives),
        variants=(variant,),
        batch=("x", "labels"),
        ids={"x": "N", "labels": "N"},
        ignored={"labels": -100},
        in_float32=("y",),
    )


GPT_NORM = {"megatron": 1.1, "sequence_parallel": 0.6}  # longer sequences have smaller gradients


def gpt(num_blocks: int = NUM_BLOCKS, plan: str = "megatron") -> Family:
    """GPT with this many blocks."""
    params = (*TIED, *stacked(block.WITH_BIAS, num_blocks), "norm.scale", "norm.b")
    variant = Variant("gpt2", block.GPT, (*ROUNDED, *TRAINING), params, sizes=SIZES, max_norm=GPT_NORM[plan])
    return language_model("models.gpt", plan, num_blocks, TIED, variant)


def bert(num_blocks: int = NUM_BLOCKS, plan: str = "megatron") -> Family:
    """BERT with this many blocks."""
    params = (*TIED, *stacked(block.WITH_BIAS, num_blocks), "norm.scale", "norm.b", *HEAD)
    variant = Variant("masked_lm", block.BERT, (*ROUNDED, *TRAINING), params, sizes=SIZES, max_norm=1.0)
    return language_model("models.bert", plan, num_blocks, {**TIED, **HEAD}, variant)


def llama(num_blocks: int = NUM_BLOCKS, plan: str = "megatron") -> Family:
    """Llama with this many blocks."""
    params = ("embed.table", *stacked(block.WITHOUT_BIAS, num_blocks), "norm.scale", "head.w")
    variant = Variant(
        "llama3", block.LLAMA, (*ROUNDED, *TRAINING), params, dims=attention.GROUPED, sizes=SIZES, max_norm=1.6
    )
    untied = {"embed.table": "V@tp D", "head.w": "D V@tp"}
    return language_model("models.llama", plan, num_blocks, untied, variant)


# Llama is trained without dropout.
FAMILIES = tuple(
    family
    for plan in LENGTHS
    for family in (with_dropout(gpt(plan=plan)), with_dropout(bert(plan=plan)), llama(plan=plan))
)
