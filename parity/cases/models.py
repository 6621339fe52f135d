"""Cases of whole models: y = mean cross entropy of the logits over the labels, a scalar; ids x, labels [B, S].

N=30 ids, which tp=4 does not divide, and V=36 rows and logits. Every fourth label is ignored. GPT and BERT have
C=8 positions, of which S=6 are used.
"""

from collections.abc import Mapping

from parity.cases import attention, block, cross_entropy
from parity.cases.family import TRAINING, Family, Variant
from parity.cases.notation import Expected

NUM_BLOCKS = 2  # of the cases; presets have others
DIMS = {"B": 2, "S": 6, "D": 24, "H": 12, "K": 12, "E": 6, "F": 48, "V": 36, "N": 30}

ROUNDED = ("float64", "float32", "bfloat16")
SIZES = {**block.SIZES, "num_ids": "N"}


def stacked(names: tuple[str, ...], num_blocks: int) -> tuple[str, ...]:
    """A block's parameters, under the names that they have in a model."""
    return tuple(f"blocks.{i}.{name}" for i in range(num_blocks) for name in names)


BLOCK = block.family(block.FAMILIES, "megatron")
LOSS = block.family(cross_entropy.FAMILIES, "vocab_parallel")
LAYOUTS = block.sublayers("megatron")

HEAD = {"head.w": "D D", "head.b": "D", "head_norm.scale": "D", "head_norm.b": "D", "vocab.b": "V@tp"}
TIED = {"tied.embed.table": "V@tp D", "positions.table": "C D"}


def blocks_of(num_blocks: int) -> dict[str, str]:
    """The layouts of all parameters that the blocks may have."""
    return {name: LAYOUTS[name.split(".", 2)[2]] for name in stacked(tuple(LAYOUTS), num_blocks)}


def language_model(
    layer: str, num_blocks: int, dims: Mapping[str, int], tensors: Mapping[str, str], variant: Variant
) -> Family:
    """The family of a language model; tensors: what it has beside blocks and norm.

    It sends B*S*D elements 1 + 2 L times forward and as often backward, and B*S three times: nothing else.
    """
    return Family(
        layer=layer,
        plan="megatron",
        dims=dims,
        tensors={
            "x": "B S",
            "labels": "B S",
            "y": "",
            **blocks_of(num_blocks),
            "norm.scale": "D",
            "norm.b": "D",
            **tensors,
        },
        collectives=(
            Expected(
                "all_reduce", "tp", "forward", "B*S*D", "embedding: each device has its own ids' rows, 0 for others"
            ),
            *(BLOCK.collectives * num_blocks),
            Expected("all_reduce", "tp", "backward", "B*S*D", "head: dh = dlogits w^T sums over V, which is sharded"),
            *LOSS.collectives,
        ),
        variants=(variant,),
        batch=("x", "labels"),
        ids={"x": "N", "labels": "N"},
        ignored={"labels": -100},
        in_float32=("y",),
    )


def gpt(num_blocks: int = NUM_BLOCKS) -> Family:
    """GPT with this many blocks."""
    params = (*TIED, *stacked(block.WITH_BIAS, num_blocks), "norm.scale", "norm.b")
    variant = Variant("gpt2", block.GPT, (*ROUNDED, *TRAINING), params, sizes=SIZES)
    return language_model("models.gpt", num_blocks, {**DIMS, "C": 8}, TIED, variant)


def bert(num_blocks: int = NUM_BLOCKS) -> Family:
    """BERT with this many blocks."""
    params = (*TIED, *stacked(block.WITH_BIAS, num_blocks), "norm.scale", "norm.b", *HEAD)
    variant = Variant("masked_lm", block.BERT, (*ROUNDED, *TRAINING), params, sizes=SIZES)
    return language_model("models.bert", num_blocks, {**DIMS, "C": 8}, {**TIED, **HEAD}, variant)


def llama(num_blocks: int = NUM_BLOCKS) -> Family:
    """Llama with this many blocks."""
    params = ("embed.table", *stacked(block.WITHOUT_BIAS, num_blocks), "norm.scale", "head.w")
    variant = Variant("llama3", block.LLAMA, (*ROUNDED, *TRAINING), params, dims=attention.GROUPED, sizes=SIZES)
    untied = {"embed.table": "V@tp D", "head.w": "D V@tp"}
    return language_model("models.llama", num_blocks, DIMS, untied, variant)


FAMILIES = (gpt(), bert(), llama())
