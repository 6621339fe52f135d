"""Cases of whole models: y = mean cross entropy of the logits over the labels, a scalar; ids x, labels [B, S].

N=30 ids, which tp=4 does not divide, and V=36 rows and logits. Every fourth label is ignored. GPT and BERT have
C=8 positions, of which S=6 are used.
"""

from parity.cases import attention, block, cross_entropy
from parity.cases.family import TRAINING, Family, Variant
from parity.cases.notation import Expected

NUM_BLOCKS = 2
DIMS = {"B": 2, "S": 6, "D": 24, "H": 12, "K": 12, "E": 6, "F": 48, "V": 36, "N": 30}

ROUNDED = ("float64", "float32", "bfloat16")
SIZES = {**block.SIZES, "num_ids": "N"}


def stacked(names: tuple[str, ...]) -> tuple[str, ...]:
    """A block's parameters, under the names that they have in a model."""
    return tuple(f"blocks.{i}.{name}" for i in range(NUM_BLOCKS) for name in names)


BLOCK = block.family(block.FAMILIES, "megatron")
LOSS = block.family(cross_entropy.FAMILIES, "vocab_parallel")
LAYOUTS = block.sublayers("megatron")
TENSORS = {
    "x": "B S",
    "labels": "B S",
    "y": "",
    **{name: LAYOUTS[name.split(".", 2)[2]] for name in stacked(tuple(LAYOUTS))},
    "norm.scale": "D",
    "norm.b": "D",
}

HEAD = {"head.w": "D D", "head.b": "D", "head_norm.scale": "D", "head_norm.b": "D", "vocab.b": "V@tp"}

# B*S*D elements 1 + 2 L times forward and as often backward, and B*S three times: nothing else.
COLLECTIVES = (
    Expected("all_reduce", "tp", "forward", "B*S*D", "embedding: each device has its own ids' rows, 0 for others"),
    *(BLOCK.collectives * NUM_BLOCKS),
    Expected("all_reduce", "tp", "backward", "B*S*D", "head: dh = dlogits w^T sums over V, which is sharded"),
    *LOSS.collectives,
)

FAMILIES = (
    Family(
        layer="models.gpt",
        plan="megatron",
        dims={**DIMS, "C": 8},
        tensors={**TENSORS, "tied.embed.table": "V@tp D", "positions.table": "C D"},
        collectives=COLLECTIVES,
        variants=(
            Variant(
                "gpt2",
                block.GPT,
                (*ROUNDED, *TRAINING),
                ("tied.embed.table", "positions.table", *stacked(block.WITH_BIAS), "norm.scale", "norm.b"),
                sizes=SIZES,
            ),
        ),
        batch=("x", "labels"),
        ids={"x": "N", "labels": "N"},
        ignored={"labels": -100},
        in_float32=("y",),
    ),
    Family(
        layer="models.bert",
        plan="megatron",
        dims={**DIMS, "C": 8},
        tensors={**TENSORS, "tied.embed.table": "V@tp D", "positions.table": "C D", **HEAD},
        collectives=COLLECTIVES,
        variants=(
            Variant(
                "masked_lm",
                block.BERT,
                (*ROUNDED, *TRAINING),
                ("tied.embed.table", "positions.table", *stacked(block.WITH_BIAS), "norm.scale", "norm.b", *HEAD),
                sizes=SIZES,
            ),
        ),
        batch=("x", "labels"),
        ids={"x": "N", "labels": "N"},
        ignored={"labels": -100},
        in_float32=("y",),
    ),
    Family(
        layer="models.llama",
        plan="megatron",
        dims=DIMS,
        tensors={**TENSORS, "embed.table": "V@tp D", "head.w": "D V@tp"},
        collectives=COLLECTIVES,
        variants=(
            Variant(
                "llama3",
                block.LLAMA,
                (*ROUNDED, *TRAINING),
                ("embed.table", *stacked(block.WITHOUT_BIAS), "norm.scale", "head.w"),
                dims=attention.GROUPED,
                sizes=SIZES,
            ),
        ),
        batch=("x", "labels"),
        ids={"x": "N", "labels": "N"},
        ignored={"labels": -100},
        in_float32=("y",),
    ),
)
