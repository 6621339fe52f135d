"""Cases of the tied embedding and head: y = table[x] table^T, ids x [B, S], table [V, D], logits y [B, S, V].

The vocabulary is padded as in the cases of the embedding. The logits of the padding count here: it is the cross entropy
that leaves them out.
"""

from parity.cases.embedding import DIMS, DIMS_SP, SEQUENCE_PARALLEL
from parity.cases.family import NUMERICS, Family, Variant
from parity.cases.notation import Expected

LOSS = Expected("all_reduce", "tp", "forward", "1", "the loss sums over the logits of all devices", of_loss=True)
VARIANTS = (Variant("one_table", {}, NUMERICS, ("embed.table",), sizes={"num_ids": "N"}),)

# The head of a model whose tokens are shared out.
HEAD_SP = (
    Expected("all_gather", "tp", "forward", "B*S*D", "head: each device has its own logits, of all tokens"),
    Expected(
        "reduce_scatter", "tp", "backward", "B*S*D", "head: dh = dlogits w^T sums over V, for each device's tokens"
    ),
)

FAMILIES = (
    Family(
        layer="tied",
        plan="vocab_parallel",
        dims=DIMS,
        tensors={"x": "B S", "y": "B S V@tp", "embed.table": "V@tp D"},
        collectives=(
            LOSS,
            Expected("all_reduce", "tp", "forward", "B*S*D", "each device has its own ids' rows, 0 for others"),
            Expected("all_reduce", "tp", "backward", "B*S*D", "dh = dy table sums over V, which is sharded"),
        ),
        variants=VARIANTS,
        ids={"x": "N"},
    ),
    Family(
        layer="tied",
        plan="sequence_parallel",
        dims=DIMS_SP,
        tensors={"x": "B S", "y": "B S V@tp", "embed.table": "V@tp D"},
        inside={"h": "B S@tp D"},
        collectives=(LOSS, *SEQUENCE_PARALLEL, *HEAD_SP),
        variants=VARIANTS,
        ids={"x": "N"},
    ),
)
