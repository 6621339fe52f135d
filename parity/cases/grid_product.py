"""What a product on the grid sends, as formulas: y = x w, x [M, K], w [K, N], by the algorithms of grid/product.py.

The payloads are derived in {torch,jax}_tp/grid/{matmul,summa,cannon}.py.
"""

from collections.abc import Mapping

from parity.cases.notation import Expected

# The loss's two sums, over x and y, are one over all devices: in XLA, and in DTensor, whose mesh has a group of all.
LOSS = Expected("all_reduce", "x+y", "forward", "1", "the loss sums over the blocks of all devices", of_loss=True)

Call = tuple[str, str, str, str]  # kind, axis (r or c), pass, reason
# Of x, and of w: r is the axis that shards the rows of y, c the axis that shards its columns.
OF_X: dict[str, tuple[Call, ...]] = {
    "summa": (
        ("broadcast", "c", "forward", "y = x w: each panel of x goes to all columns of the grid"),
        ("reduce_scatter", "c", "backward", "dx = dy w^T sums over N, which is sharded"),
        ("broadcast", "c", "backward", "dw = x^T dy: each panel of x goes to all columns again"),
    ),
    "cannon": (
        ("permute", "c", "forward", "y = x w: the blocks of x go round, once for each column of the grid"),
        ("permute", "c", "backward", "dx = dy w^T: the sums go round and home"),
        ("permute", "c", "backward", "dw = x^T dy: the blocks of x go round again"),
    ),
    "gathered": (
        ("all_gather", "c", "forward", "y = x w: whole rows of x"),
        ("reduce_scatter", "c", "backward", "dx = dy w^T sums over N, which is sharded"),
    ),
    "stationary": (
        ("all_gather", "c", "forward", "y = x w: all rows of the K that the own block of w has"),
        ("reduce_scatter", "c", "backward", "dx = dy w^T sums over N, which is sharded"),
    ),
}
OF_W: dict[str, tuple[Call, ...]] = {
    "summa": (
        ("broadcast", "r", "forward", "y = x w: each panel of w goes to all rows of the grid"),
        ("broadcast", "r", "backward", "dx = dy w^T: each panel of w goes to all rows again"),
        ("reduce_scatter", "r", "backward", "dw = x^T dy sums over M, which is sharded"),
    ),
    "cannon": (
        ("permute", "r", "forward", "y = x w: the blocks of w go round, once for each row of the grid"),
        ("permute", "r", "backward", "dx = dy w^T: the blocks of w go round again"),
        ("permute", "r", "backward", "dw = x^T dy: the sums go round and home"),
    ),
    "gathered": (
        ("all_gather", "r", "forward", "y = x w: whole columns of w"),
        ("reduce_scatter", "r", "backward", "dw = x^T dy sums over M, which is sharded"),
    ),
    # No part of w moves: what has N columns here is y.
    "stationary": (
        ("reduce_scatter", "r", "forward", "y = x w sums over K, which is sharded"),
        ("all_gather", "r", "backward", "dx = dy w^T: all rows of dy; dw = x^T dy then needs nothing"),
    ),
}
# The elements of a payload: of what has M rows and K columns, and of what has N columns.
ELEMENTS = {
    "summa": ("{M}//{r}*{K}", "{K}*({N}//{c})"),
    "cannon": ("{M}//{r}*{K}", "{K}*({N}//{c})"),
    "gathered": ("{M}//{r}*{K}", "{K}*({N}//{c})"),
    "stationary": ("{M}*({K}//{r})", "{M}*({N}//{c})"),
}


def product(
    algorithm: str,
    M: str,
    K: str,
    columns: Mapping[str, str],
    exchanged: bool = False,
) -> tuple[Expected, ...]:
    """The collectives of one product, M, K formulas. columns: N of each weight of it, by its parameter's name.

    exchanged: whether the roles of x and y are.
    """
    axes = {"r": "y", "c": "x"} if exchanged else {"r": "x", "c": "y"}
    of_x, of_w = ELEMENTS[algorithm]

    def expected(call: Call, elements: str, name: str, N: str) -> Expected:
        kind, axis, pass_, reason = call
        what = f"{name.removesuffix('.w')}: {reason}" if "." in name else reason
        formula = elements.format(M=M, K=f"({K})" if "*" in K else K, N=f"({N})" if "*" in N else N, **axes)
        return Expected(kind, axes[axis], pass_, formula, what, param=name)

    (first, _), *_ = columns.items()
    return (
        *(expected(call, of_x, first, "") for call in OF_X[algorithm]),
        *(expected(call, of_w, name, N) for name, N in columns.items() for call in OF_W[algorithm]),
    )


def of_rows(name: str, elements: str, axis: str = "x", **flags: bool) -> Expected:
    """The gradient of a parameter that each row of devices uses for its own tokens."""
    return Expected(
        "all_reduce", axis, "backward", elements, f"d{name} sums over tokens, which are sharded", param=name, **flags
    )
