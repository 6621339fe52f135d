"""Cases of data parallelism beside tensor parallelism: a block or a model, its batch shared out over dp or fsdp.

What the inner layer sends, it sends for its part of the batch; every parameter adds its own over dp or fsdp.
B=8 sequences, heads and features that 4 x 2 devices divide; sizes differ from those of the inner layers' own cases.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from parity.cases import block, grid_block, grid_models, models, vit
from parity.cases.family import TRAINING, Family, Variant
from parity.cases.notation import Dim, Expected, parse_layout

# Between the norms of each variant's steps of training.
MAX_NORM = {"gpt": 700.0, "llama": 102.0, "gpt2": 0.4, "llama3": 0.7}

DIMS = {"B": 8, "S": 6, "D": 24, "H": 8, "K": 8, "E": 4, "F": 48, "V": 40, "N": 30, "C": 8, "I": 6, "J": 8, "P": 2}
ROUNDED = ("float64", "float32", "bfloat16")
INPUTS = ("x", "labels", "truth", "step", "y")


def is_output_dim(name: str, position: int, num_dims: int) -> bool:
    """Whether `fully_shard` cuts here: the first dim of what PyTorch stores, [out, in] of a weight."""
    return position == (num_dims - 1 if name.endswith(".w") else 0)


def cut(name: str, layout: str, axis: str) -> str:
    """A parameter's layout with its output dim cut over fsdp too, within the tp shard; dp leaves it as it is."""
    if axis == "dp":
        return layout
    words = layout.split()
    for i, word in enumerate(words):
        if is_output_dim(name, i, len(words)):
            words[i] = f"{word}+{axis}" if "@" in word else f"{word}@{axis}"
    return " ".join(words)


def on_batch(layout: str, axis: str) -> str:
    """The layout of an input or output with its first dim, the batch, over the axis; what cuts it further, within."""
    first, _, rest = layout.partition(" ")
    letter, _, within = first.partition("@")
    axes = f"{axis}+{within}" if within else axis
    return f"{letter}@{axes} {rest}".strip() if first else ""


def elements(layout: tuple[Dim, ...]) -> str:
    """The formula of the elements of a tp shard, or of a block on a grid."""
    product = "*".join(dim.letter for dim in layout)
    return "//".join([product, *(axis for dim in layout for axis in dim.axes)])


def is_read_backward(name: str) -> bool:
    """Whether the backward pass needs the value: not that of a bias, nor of a table of which rows are looked up."""
    return not name.endswith((".b", "positions.table", "inner.embed.table"))


# A block's first norm and a ViT's embedding of patches: backward, what they are multiplied with is the input alone.
FIRST = ("inner.norm1.scale", "inner.embed.w")


def is_of_norm(name: str) -> bool:
    """Whether it is a scale or bias of a norm: their gradients are sums over tokens, float32 until they are rounded."""
    return "norm" in name


def of_parameters(tensors: Mapping[str, str], axis: str) -> tuple[Expected, ...]:
    """What each parameter sends over the axis."""
    kinds = {
        "dp": (("all_reduce", "backward", "its gradient sums over the parts of the batch"),),
        "fsdp": (
            ("all_gather", "forward", "it is whole where it is used"),
            ("all_gather", "backward", "it is whole where it is used, and was not kept"),
            ("reduce_scatter", "backward", "its gradient sums over the parts of the batch, each keeps its shard"),
        ),
    }
    return tuple(
        Expected(
            kind,
            axis,
            pass_,
            elements(parse_layout(layout)),
            f"{name}: {reason}",
            param=name,
            of_input=(kind, pass_) == ("all_gather", "backward") and name in FIRST,
            torch_only=(kind, pass_) == ("all_gather", "backward") and not is_read_backward(name),
            of_tokens=kind in ("all_reduce", "reduce_scatter") and is_of_norm(name),
        )
        for name, layout in tensors.items()
        for kind, pass_, reason in kinds[axis]
    )


def of_part(formula: Expected, axis: str) -> Expected:
    """What the inner layer sends, for its part of the batch."""
    return replace(
        formula,
        elements=re.sub(r"\bB\b", f"(B//{axis})", formula.elements),
        param=formula.param and f"inner.{formula.param}",
    )


def beside(inner: Family, axis: str, names: tuple[str, ...]) -> Family:
    """The family of a layer beside data parallelism over this axis, with some of its variants."""
    on_grid = inner.layer.startswith("grid.")
    params = {f"inner.{name}": layout for name, layout in inner.tensors.items() if name not in INPUTS}
    tensors = {name: on_batch(inner.tensors[name], axis) for name in INPUTS if name in inner.tensors}
    loss: tuple[Expected, ...] = ()
    own = [one for one in inner.collectives if not one.of_loss]
    if tensors["y"]:
        axes = f"{axis}+x+y" if on_grid else axis
        loss = (Expected("all_reduce", axes, "forward", "1", "the loss sums over the batch", of_loss=True),)
    else:
        if on_grid and "labels" in tensors:
            (rows,) = parse_layout(inner.tensors["labels"])[0].axes  # which share out a part's batch
            loss += (Expected("all_reduce", rows, "forward", "1", "sum of a part's own labels", in_float32=True),)
        for reason in ("labels that count", "the weighted means") if "labels" in tensors else ("the means",):
            loss += (Expected("all_reduce", axis, "forward", "1", f"sum of {reason}", in_float32=True),)
    return Family(
        layer=f"hybrid.{inner.layer}",
        plan=axis,
        dims={name: DIMS.get(name, size) for name, size in inner.dims.items()},
        tensors={**tensors, **{name: cut(name, layout, axis) for name, layout in params.items()}},
        collectives=(*(of_part(one, axis) for one in own), *of_parameters(params, axis), *loss),
        variants=tuple(
            Variant(
                variant.name,
                variant.options,
                ROUNDED if on_grid else (*ROUNDED, *TRAINING),
                tuple(f"inner.{name}" for name in variant.params),
                sizes=variant.sizes,
                max_norm=MAX_NORM.get(variant.name, variant.max_norm),
            )
            for variant in inner.variants
            if variant.name in names
        ),
        batch=inner.batch,
        ids=inner.ids,
        ignored=inner.ignored,
        in_float32=inner.in_float32,
        styles=inner.styles,
    )


FAMILIES = tuple(
    beside(inner, axis, names)
    for inner, names in (
        (block.family(block.FAMILIES, "megatron"), ("gpt", "llama")),
        *((family, ("gpt2", "llama3", "weather")) for family in (models.gpt(), models.llama(), vit.field())),
    )
    for axis in ("dp", "fsdp")
) + tuple(
    beside(block.family(families, "summa"), axis, names)
    for families, names in ((grid_block.FAMILIES, ("gpt", "llama")), (grid_models.FAMILIES, ("gpt2",)))
    for axis in ("dp", "fsdp")
)
