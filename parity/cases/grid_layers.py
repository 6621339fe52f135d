"""Cases of the layers on the grid: activations [B@x, S, D@y], weights split along both dims.

What a layer sends is what its products send (grid_product.py), of B*S rows, and the sums of biases' and norms'
gradients over tokens; the derivations are in the layers' files. Blocks are odd on three or four devices of an axis.
"""

from collections.abc import Mapping

from parity.cases import attention, cross_entropy, mlp, norm, swiglu
from parity.cases.family import NUMERICS, Family, Variant
from parity.cases.grid_product import LOSS, OF_X, of_rows, product
from parity.cases.notation import Expected

ALGORITHMS = tuple(OF_X)
DIMS = {"B": 12, "S": 3, "D": 36, "F": 60}
HEADS = {"H": 12, "K": 12, "E": 6}
ROUNDED = ("float64", "float32", "bfloat16")

X = "B@x S D@y"


def exchange(layout: str) -> str:
    """The layout with the roles of x and y exchanged."""
    return "".join({"x": "y", "y": "x"}.get(letter, letter) for letter in layout)


def into(algorithm: str, layouts: Mapping[str, str]) -> dict[str, str]:
    """The layouts of a layer into hidden features, which in `stationary` has the roles of x and y exchanged."""
    return {name: exchange(text) if algorithm == "stationary" else text for name, text in layouts.items()}


def affine(algorithm: str, K: str, columns: Mapping[str, str], is_into: bool = False) -> tuple[Expected, ...]:
    """What linears of the same x send: their product, and the sums of the biases' gradients. columns: N by name."""
    exchanged = is_into and algorithm == "stationary"
    rows, across = ("y", "x") if exchanged else ("x", "y")
    weights = {f"{name}.w".removeprefix("."): N for name, N in columns.items()}
    biases = {f"{name}.b".removeprefix("."): N for name, N in columns.items()}
    return (
        *product(algorithm, "B*S", K, weights, exchanged),
        *(of_rows(name, f"{N}//{across}", rows) for name, N in biases.items()),
    )


def _linear(plan: str) -> Family:
    algorithm, exchanged = plan.removesuffix("_exchanged"), plan.endswith("_exchanged")
    x = {"x": exchange(X) if plan == "stationary" else X}
    rest = {"w": "D@x F@y", "b": "F@y", "y": "B@x S F@y"}
    return Family(
        layer="grid.linear",
        plan=plan,
        dims=DIMS,
        tensors={**x, **(into(algorithm, rest) if exchanged else rest)},
        collectives=(*affine(algorithm, "D", {"": "F"}, exchanged), LOSS),
        variants=(
            Variant("bias", {}, NUMERICS, ("w", "b")),
            Variant("no_bias", {}, ("float64", "exact-float32"), ("w",)),
            *([Variant("panel7", {"panel": 7}, ("float64", "exact-float32"), ("w", "b"))] if plan == "summa" else []),
        ),
        styles=("manual",),
        square=plan == "cannon",
    )


def norm_collectives(prefix: str = "") -> tuple[Expected, ...]:
    """What a norm sends; it has a bias just when it is a layer norm."""
    scale, b = f"{prefix}scale", f"{prefix}b"

    def over_y(pass_: str, what: str, param: str) -> Expected:
        return Expected("all_reduce", "y", pass_, "B//x*S", f"{prefix}{what}", param=param, in_float32=True)

    return (
        *(
            expected
            for what, param in (("Σ (x - mean)²", scale), ("Σ x", b))
            for expected in (
                over_y("forward", f"{what} over all features", param),
                over_y("backward", f"the gradient of {what}: each device has its features' part", param),
            )
        ),
        of_rows(scale, "D//y", of_tokens=True),
        of_rows(b, "D//y", of_tokens=True),
    )


NORM = Family(
    layer="grid.norm",
    plan="grid",
    dims={"B": 12, "S": 5, "D": 36},
    tensors={"x": X, "y": X, "scale": "D@y", "b": "D@y"},
    collectives=(*norm_collectives(), LOSS),
    variants=tuple(variant for variant in norm.VARIANTS if variant.name != "layer_norm_no_bias"),
    styles=("manual",),
)


def mlp_collectives(algorithm: str, prefix: str = "") -> tuple[Expected, ...]:
    """What an MLP sends; gate and up have x in common."""
    return (
        *affine(algorithm, "D", {f"{prefix}up": "F", f"{prefix}gate": "F"}, is_into=True),
        *affine(algorithm, "F", {f"{prefix}down": "D"}),
    )


def mlp_layouts(algorithm: str) -> dict[str, str]:
    """The layouts of an MLP's parameters."""
    up = {"w": "D@x F@y", "b": "F@y"}
    return {
        **into(algorithm, {f"{name}.{leaf}": text for name in ("gate", "up") for leaf, text in up.items()}),
        "down.w": "F@x D@y",
        "down.b": "D@y",
    }


def _mlp(algorithm: str) -> Family:
    return Family(
        layer="grid.mlp",
        plan=algorithm,
        dims=DIMS,
        tensors={"x": X, "y": X, **mlp_layouts(algorithm)},
        collectives=(*mlp_collectives(algorithm), LOSS),
        variants=(
            *(variant for variant in mlp.VARIANTS if variant.name in ("gelu_erf", "relu")),
            *(
                Variant(f"swiglu_{variant.name}", {"activation": "swiglu"}, ROUNDED, variant.params)
                for variant in swiglu.VARIANTS
                if variant.name.startswith("separate")
            ),
        ),
        styles=("manual",),
        square=algorithm == "cannon",
    )


def attention_collectives(algorithm: str, prefix: str = "") -> tuple[Expected, ...]:
    """What attention sends: q, k and v have x in common."""
    columns = {f"{prefix}q": "H*E", f"{prefix}k": "K*E", f"{prefix}v": "K*E"}
    return (*affine(algorithm, "D", columns, is_into=True), *affine(algorithm, "H*E", {f"{prefix}o": "D"}))


def attention_layouts(algorithm: str) -> dict[str, str]:
    """The layouts of attention's parameters: whole heads are sharded, but for the rows of w_o."""
    layouts: dict[str, str] = {}
    for name, N in (("q", "H*E"), ("k", "K*E"), ("v", "K*E")):
        layouts |= into(algorithm, {f"{name}.w": f"D@x {N}@y", f"{name}.b": f"{N}@y"})
    return {**layouts, "o.w": "(H*E)@x D@y", "o.b": "D@y"}


def _attention(algorithm: str) -> Family:
    return Family(
        layer="grid.attention",
        plan=algorithm,
        dims={**{letter: DIMS[letter] for letter in "BSD"}, **HEADS},
        tensors={"x": X, "y": X, **attention_layouts(algorithm)},
        collectives=(*attention_collectives(algorithm), LOSS),
        variants=tuple(variant for variant in attention.SEPARATE_VARIANTS if not variant.inputs),  # no dropout
        styles=("manual",),
        square=algorithm == "cannon",
    )


# What a lookup in a table [V@x, D@y] sends.
LOOKUPS = {
    "summa": (
        Expected("broadcast", "x", "forward", "V*(D//y)", "each block of the table goes to all rows of the grid"),
        Expected("reduce_scatter", "x", "backward", "V*(D//y)", "dtable sums over tokens, which are sharded"),
    ),
    "stationary": (
        Expected("all_gather", "x", "forward", "B*S", "the ids of all tokens", of_ids=True),
        Expected("reduce_scatter", "x", "forward", "B*S*(D//y)", "one device of the column has the row of an id"),
        Expected("all_gather", "x", "backward", "B*S*(D//y)", "dy of all tokens; dtable then needs nothing"),
    ),
}
# What the product with the table, transposed, sends.
HEADS_OF_TABLE = {
    "summa": (
        Expected("broadcast", "x", "forward", "V*(D//y)", "y = h table^T: each panel of the table goes to all rows"),
        Expected("reduce_scatter", "y", "forward", "B//x*S*V", "y = h table^T sums over D, which y shards"),
        Expected("broadcast", "y", "backward", "B//x*S*V", "dh = dy table: each panel of dy goes to all columns"),
        Expected("broadcast", "x", "backward", "V*(D//y)", "dh = dy table: each panel of the table goes to all rows"),
        Expected("broadcast", "y", "backward", "B//x*S*V", "dtable = dy^T h: each panel of dy to all columns again"),
        Expected("reduce_scatter", "x", "backward", "V*(D//y)", "dtable = dy^T h sums over tokens, which x shards"),
    ),
    "stationary": product("stationary", "B*S", "D", {"": "V"}, exchanged=True),
}
TOKENS = {"B": 12, "S": 5, "D": 36, "V": 36, "N": 30}


def _embedding(algorithm: str) -> Family:
    return Family(
        layer="grid.embedding",
        plan=algorithm,
        dims=TOKENS,
        tensors={"x": "B@x S", "y": X, "table": "V@x D@y"},
        collectives=(*LOOKUPS[algorithm], LOSS),
        variants=(Variant("padded", {}, NUMERICS, ("table",), sizes={"num_ids": "N"}),),
        ids={"x": "N"},
        styles=("manual",),
    )


def _tied(algorithm: str) -> Family:
    return Family(
        layer="grid.tied",
        plan=algorithm,
        dims=TOKENS,
        tensors={
            "x": "B@x S",
            "y": "B@y S V@x" if algorithm == "stationary" else "B@x S V@y",
            "embed.table": "V@x D@y",
        },
        collectives=(*LOOKUPS[algorithm], *HEADS_OF_TABLE[algorithm], LOSS),
        variants=(Variant("one_table", {}, NUMERICS, ("embed.table",), sizes={"num_ids": "N"}),),
        ids={"x": "N"},
        styles=("manual",),
    )


def cross_entropy_collectives(exchanged: bool, tokens: str = "B//{rows}*S") -> tuple[Expected, ...]:
    """What the cross entropy sends; tokens: those of one device."""
    rows, columns = ("y", "x") if exchanged else ("x", "y")
    own = tokens.format(rows=rows)
    return (
        *(
            Expected("all_reduce", columns, "forward", own, f"{what} over all devices' logits", in_float32=True)
            for what in ("the largest logit", "sum of exp", "the label's logit")
        ),
        Expected("all_reduce", rows, "forward", "2", "sum of losses and number of labels", in_float32=True),
    )


def _cross_entropy(plan: str) -> Family:
    tensors = {"x": "B@x S V@y", "labels": "B@x S"}
    return Family(
        layer="grid.cross_entropy",
        plan=plan,
        dims={letter: TOKENS[letter] for letter in "BSVN"},
        tensors={**into("stationary" if plan == "exchanged" else "", tensors), "y": ""},
        collectives=cross_entropy_collectives(plan == "exchanged"),
        variants=cross_entropy.FAMILIES[0].variants,
        batch=("x", "labels"),
        ids={"labels": "N"},
        ignored={"labels": -100},
        in_float32=("y",),
        styles=("manual",),
    )


FAMILIES = (
    *map(_linear, (*ALGORITHMS, "stationary_exchanged")),
    NORM,
    *map(_mlp, ALGORITHMS),
    *map(_attention, ALGORITHMS),
    *map(_embedding, LOOKUPS),
    *map(_tied, LOOKUPS),
    *map(_cross_entropy, ("grid", "exchanged")),
)
