"""Cases of dropout: y = x / (1 - rate) where an element is kept, else 0; a function of its place in the whole tensor.

With a rate of 1/2 nothing is rounded: the masks of both frameworks are the same bits at every tp degree.
"""

from dataclasses import replace

from parity.cases.family import NUMERICS, Family, Variant
from parity.cases.linear import LOSS, LOSS_SP
from parity.cases.notation import Expected

DIMS = {"B": 2, "S": 12, "D": 24, "N": 1_000_000}  # N steps

VARIANTS = (
    Variant("half", {"rate": 0.5, "seed": 2026, "layer": 3}, NUMERICS, ()),
    Variant("tenth", {"rate": 0.1, "seed": 7, "layer": 0}, ("float64", "float32", "bfloat16"), ()),
)

LOSS_HEADS = replace(LOSS, reason="the loss sums over the heads of all devices")


def plan(name: str, layout: str, *collectives: Expected, dims: dict[str, int] = DIMS) -> Family:
    """The family of x and y in this layout."""
    return Family(
        layer="dropout",
        plan=name,
        dims=dims,
        tensors={"x": layout, "y": layout, "step": ""},
        collectives=collectives,
        variants=VARIANTS,
        batch=("x", "step"),
        ids={"step": "N"},
        axes=("tp",),
    )


FAMILIES = (
    plan("replicated", "B S D"),
    plan("feature_parallel", "B S D@tp", LOSS),
    plan("sequence_parallel", "B S@tp D", LOSS_SP),
    # The probabilities of attention: heads first, queries, keys.
    plan("head_parallel", "H@tp B S T", LOSS_HEADS, dims={"B": 2, "H": 12, "S": 3, "T": 5, "N": 1_000_000}),
)
