"""Cases of a transformer block on the grid: as those of `block`, x and y [B@x, S, D@y], weights split both ways."""

from parity.cases import block
from parity.cases.family import Family
from parity.cases.grid_layers import (
    ALGORITHMS,
    DIMS,
    HEADS,
    X,
    attention_collectives,
    attention_layouts,
    mlp_collectives,
    mlp_layouts,
    norm_collectives,
)
from parity.cases.grid_product import LOSS
from parity.cases.notation import Expected


def collectives(algorithm: str, prefix: str = "") -> tuple[Expected, ...]:
    """What a block sends, which is what its layers send."""
    return (
        *norm_collectives(f"{prefix}norm1."),
        *attention_collectives(algorithm, f"{prefix}attention."),
        *norm_collectives(f"{prefix}norm2."),
        *mlp_collectives(algorithm, f"{prefix}mlp."),
    )


def layouts(algorithm: str) -> dict[str, str]:
    """The layouts of all parameters that a block may have."""
    return {
        **{f"{name}.{leaf}": "D@y" for name in ("norm1", "norm2") for leaf in ("scale", "b")},
        **{f"attention.{name}": text for name, text in attention_layouts(algorithm).items()},
        **{f"mlp.{name}": text for name, text in mlp_layouts(algorithm).items()},
    }


FAMILIES = tuple(
    Family(
        layer="grid.block",
        plan=algorithm,
        dims={**DIMS, **HEADS},
        tensors={"x": X, "y": X, **layouts(algorithm)},
        collectives=(*collectives(algorithm), LOSS),
        variants=tuple(variant for variant in block.VARIANTS if not variant.inputs),  # no dropout
        styles=("manual",),
        square=algorithm == "cannon",
    )
    for algorithm in ALGORITHMS
)
