"""Cases of the 2D matrix product: y = x w, x [M, K], w [K, N], all split along both dims over the axes x and y.

The payloads are derived in {torch,jax}_tp/grid/{matmul,summa,cannon}.py. XLA runs the loss's two sums as one over all
devices; DTensor does so too where the mesh has a group of all devices.
"""

from parity.cases.family import Family, Variant
from parity.cases.notation import Expected

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

LOSS = Expected("all_reduce", "x+y", "forward", "1", "the loss sums over the blocks of all devices", of_loss=True)

X_ROWS, W_COLUMNS = "M//x*K", "K*(N//y)"

SUMMA = (
    Expected("broadcast", "y", "forward", X_ROWS, "y = x w: each panel of x goes to all columns of the grid"),
    Expected("broadcast", "x", "forward", W_COLUMNS, "y = x w: each panel of w goes to all rows of the grid"),
    Expected("broadcast", "x", "backward", W_COLUMNS, "dx = dy w^T: each panel of w goes to all rows again"),
    Expected("reduce_scatter", "y", "backward", X_ROWS, "dx = dy w^T sums over N, which y shards"),
    Expected("broadcast", "y", "backward", X_ROWS, "dw = x^T dy: each panel of x goes to all columns again"),
    Expected("reduce_scatter", "x", "backward", W_COLUMNS, "dw = x^T dy sums over M, which x shards"),
)

CANNON = (
    Expected("permute", "y", "forward", X_ROWS, "y = x w: the blocks of x go round, y times"),
    Expected("permute", "x", "forward", W_COLUMNS, "y = x w: the blocks of w go round, x times"),
    Expected("permute", "x", "backward", W_COLUMNS, "dx = dy w^T: the blocks of w go round again"),
    Expected("permute", "y", "backward", X_ROWS, "dx = dy w^T: the sums go round and home"),
    Expected("permute", "y", "backward", X_ROWS, "dw = x^T dy: the blocks of x go round again"),
    Expected("permute", "x", "backward", W_COLUMNS, "dw = x^T dy: the sums go round and home"),
)

GATHERED = (
    Expected("all_gather", "y", "forward", X_ROWS, "y = x w: whole rows of x"),
    Expected("all_gather", "x", "forward", W_COLUMNS, "y = x w: whole columns of w"),
    Expected("reduce_scatter", "y", "backward", X_ROWS, "dx = dy w^T sums over N, which y shards"),
    Expected("reduce_scatter", "x", "backward", W_COLUMNS, "dw = x^T dy sums over M, which x shards"),
)

STATIONARY = (
    Expected("all_gather", "y", "forward", "M*(K//x)", "y = x w: all rows of the K that the own block of w has"),
    Expected("reduce_scatter", "x", "forward", "M*(N//y)", "y = x w sums over K, which x shards"),
    Expected("all_gather", "x", "backward", "M*(N//y)", "dx = dy w^T: all rows of dy; dw = x^T dy then needs nothing"),
    Expected("reduce_scatter", "y", "backward", "M*(K//x)", "dx = dy w^T sums over N, which y shards"),
)


def _family(plan: str, collectives: tuple[Expected, ...], variants: tuple[Variant, ...] = PLAIN) -> Family:
    return Family(
        layer="grid.matmul",
        plan=plan,
        dims=DIMS,
        tensors=BLOCKS if plan != "stationary" else {**BLOCKS, "x": "M@y K@x"},
        collectives=(*collectives, LOSS),
        variants=variants,
        styles=("manual",) if plan != "partitioner" else ("auto", "typed"),
        square=plan == "cannon",
        is_chosen=plan == "partitioner",
    )


FAMILIES = (
    _family("summa", SUMMA, PANELS),
    _family("cannon", CANNON),
    _family("gathered", GATHERED),
    _family("stationary", STATIONARY),
    # Given these layouts both gather whole rows of x and columns of w in forward. What they do in backward depends on
    # the sizes and on the mesh: XLA transposes `gathered`, at times gathering w twice; DTensor, whose product saves its
    # own blocks, gathers x again, and brings dx to its layout by way of an all-reduce.
    _family("partitioner", GATHERED),
)
