"""Cases of the vocab-parallel embedding: y = table[x], ids x [B, S], table [V, D].

The vocabulary has N=30 ids, which tp=4 does not divide; the table is padded to V=36 rows, which 2, 3 and 4 do. The
rows of the padding hold numbers like the others: whoever reads one, or gives it a gradient, is seen.
"""

from parity.cases.family import NUMERICS, Family, Variant
from parity.cases.linear import LOSS_SP
from parity.cases.notation import Expected

DIMS = {"B": 3, "S": 5, "D": 24, "V": 36, "N": 30}

DIMS_SP = {**DIMS, "B": 2, "S": 12}  # S is sharded too

VARIANTS = (Variant("padded", {}, NUMERICS, ("table",), sizes={"num_ids": "N"}),)

# With the rows scattered to the devices whose tokens they are.
SEQUENCE_PARALLEL = (
    Expected("reduce_scatter", "tp", "forward", "B*S*D", "embedding: each device has its own ids' rows, 0 for others"),
    Expected("all_gather", "tp", "backward", "B*S*D", "embedding: the rows of all tokens' gradients"),
)

FAMILIES = (
    Family(
        layer="embedding",
        plan="vocab_parallel",
        dims=DIMS,
        tensors={"x": "B S", "y": "B S D", "table": "V@tp D"},
        collectives=(
            Expected("all_reduce", "tp", "forward", "B*S*D", "each device has its own ids' rows, 0 for others"),
        ),
        variants=VARIANTS,
        ids={"x": "N"},
    ),
    Family(
        layer="embedding",
        plan="sequence_parallel",
        dims=DIMS_SP,
        tensors={"x": "B S", "y": "B S@tp D", "table": "V@tp D"},
        collectives=(*SEQUENCE_PARALLEL, LOSS_SP),
        variants=VARIANTS,
        ids={"x": "N"},
    ),
)
