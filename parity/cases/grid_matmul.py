"""Cases of the 2D matrix product: y = x w, x [M, K], w [K, N], all split along both dims over the axes x and y."""

from parity.cases.family import Family, Variant
from parity.cases.grid_product import LOSS, product

DIMS = {"M": 12, "K": 36, "N": 60}  # rectangular; blocks of 3, 9 and 15 on four devices of an axis, 4, 12, 20 on three

NUMERICS = ("float64", "bfloat16", "exact-float32", "exact-bfloat16")

PLAIN = (Variant("plain", {}, NUMERICS, ("w",)),)
# 36 is a multiple of neither, and some panels cross the borders of blocks. A panel of 50 is all of K at once.
PANELS = (
    Variant("panel5", {"panel": 5}, NUMERICS, ("w",)),
    Variant("panel10", {"panel": 10}, ("float64", "exact-float32"), ("w",)),
    Variant("panel50", {"panel": 50}, ("float64", "exact-float32"), ("w",)),
)

BLOCKS = {"x": "M@x K@y", "w": "K@x N@y", "y": "M@x N@y"}


def _family(plan: str, algorithm: str, variants: tuple[Variant, ...] = PLAIN) -> Family:
    return Family(
        layer="grid.matmul",
        plan=plan,
        dims=DIMS,
        tensors=BLOCKS if plan != "stationary" else {**BLOCKS, "x": "M@y K@x"},
        collectives=(*product(algorithm, "M", "K", {"w": "N"}), LOSS),
        variants=variants,
        styles=("manual",) if plan != "partitioner" else ("auto", "typed"),
        square=plan == "cannon",
        is_chosen=plan == "partitioner",
    )


FAMILIES = (
    _family("summa", "summa", PANELS),
    _family("cannon", "cannon"),
    _family("gathered", "gathered"),
    _family("stationary", "stationary"),
    # Given these layouts both gather whole rows of x and columns of w in forward. What they do in backward depends on
    # the sizes and on the mesh: XLA transposes `gathered`, at times gathering w twice; DTensor, whose product saves its
    # own blocks, gathers x again, and brings dx to its layout by way of an all-reduce.
    _family("partitioner", "gathered"),
)
