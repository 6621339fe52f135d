"""Cases of the linear layer: y = x w + b, x [B, S, D], w [D, F]."""

from parity.cases.family import NUMERICS, Family, Variant
from parity.cases.notation import Expected

DIMS = {"B": 3, "S": 5, "D": 24, "F": 36}  # rectangular, odd batches; D and F are multiples of 2, 3 and 4

DIMS_SP = {"B": 2, "S": 12, "D": 24, "F": 36}  # S is sharded too

VARIANTS = (
    Variant("bias", {}, NUMERICS, ("w", "b")),
    Variant("no_bias", {}, NUMERICS, ("w",)),
)

LOSS = Expected("all_reduce", "tp", "forward", "1", "the loss sums over the F of all devices", of_loss=True)
DX = Expected("all_reduce", "tp", "backward", "B*S*D", "dx = dy w^T sums over F: each device has its own columns' part")
Y = Expected("all_reduce", "tp", "forward", "B*S*F", "y = x w sums over D: each device has its own rows' part")

LOSS_SP = Expected("all_reduce", "tp", "forward", "1", "the loss sums over the tokens of all devices", of_loss=True)

OWN_TOKENS = "is a sum over all tokens, of which each device has its own"

COLUMN = {"w": "D F@tp", "b": "F@tp"}
ROW = {"w": "D@tp F", "b": "F"}

FAMILIES = (
    Family(
        layer="linear",
        plan="column_parallel",
        dims=DIMS,
        tensors={"x": "B S D", "y": "B S F@tp", **COLUMN},
        collectives=(LOSS, DX),
        variants=VARIANTS,
    ),
    Family(
        layer="linear",
        plan="column_parallel_gather_output",
        dims=DIMS,
        tensors={"x": "B S D", "y": "B S F", **COLUMN},
        collectives=(
            Expected("all_gather", "tp", "forward", "B*S*F", "every device gets all columns; its transpose is a split"),
            DX,
        ),
        variants=VARIANTS,
    ),
    Family(
        layer="linear",
        plan="row_parallel",
        dims=DIMS,
        tensors={"x": "B S D@tp", "y": "B S F", **ROW},
        collectives=(Y,),
        variants=VARIANTS,
    ),
    Family(
        layer="linear",
        plan="row_parallel_split_input",
        dims=DIMS,
        tensors={"x": "B S D", "y": "B S F", **ROW},
        collectives=(
            Y,
            Expected("all_gather", "tp", "backward", "B*S*D", "the transpose of splitting x is a gather"),
        ),
        variants=VARIANTS,
    ),
    Family(
        layer="linear",
        plan="column_sequence_parallel",
        dims=DIMS_SP,
        tensors={"x": "B S@tp D", "y": "B S F@tp", **COLUMN},
        collectives=(
            Expected("all_gather", "tp", "forward", "B*S*D", "each device multiplies all tokens by its own columns"),
            LOSS,
            Expected("reduce_scatter", "tp", "backward", "B*S*D", "dx = dy w^T sums over F, for each device's tokens"),
        ),
        variants=VARIANTS,
    ),
    Family(
        layer="linear",
        plan="row_sequence_parallel",
        dims=DIMS_SP,
        tensors={"x": "B S D@tp", "y": "B S@tp F", **ROW},
        collectives=(
            Expected("reduce_scatter", "tp", "forward", "B*S*F", "y = x w sums over D, for each device's tokens"),
            LOSS_SP,
            Expected("all_gather", "tp", "backward", "B*S*F", "dx and dw take dy of all tokens"),
            Expected("all_reduce", "tp", "backward", "F", f"db {OWN_TOKENS}", param="b", of_tokens=True),
        ),
        variants=VARIANTS,
    ),
)
