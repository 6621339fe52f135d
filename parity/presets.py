"""Models by name, from `gpt-tiny` to `llama3-70b`: sizes and options, from `presets.toml`."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from parity.cases import grid_models, models, vit
from parity.cases.family import CaseError, Family
from parity.cases.notation import shape_of

FILE = Path(__file__).with_name("presets.toml")

# By layer and plan: the family with a number of blocks.
FAMILIES: dict[str, Callable[..., Family]] = {
    "models.gpt": models.gpt,
    "models.bert": models.bert,
    "models.llama": models.llama,
    "models.vit/field": vit.field,
    "models.vit/classes": vit.classes,
    "grid.models.gpt": grid_models.gpt,
    "grid.models.vit": grid_models.vit,
}


@dataclass(frozen=True)
class Preset:
    """A model of a certain size; batch B and sequence S are not a part of it."""

    name: str
    layer: str  # e.g. "models.llama"
    family: Family  # with as many blocks, and these sizes in `dims`
    dims: Mapping[str, int]  # letter -> size, as the head of `presets.toml` explains them
    options: Mapping[str, Any]  # as the layer's `build` takes them
    source: str
    parameters: int | None  # the number that is published, if one is

    def shapes(self, padded: bool = True) -> dict[str, tuple[int, ...]]:
        """Global shapes of all parameters; not padded: with N rows and logits in place of V."""
        dims = dict(self.dims)
        if "N" in dims and not padded:
            dims["V"] = dims["N"]
        (variant,) = self.family.variants
        return {name: shape_of(self.family.tensors[name], dims) for name in variant.params}

    def num_parameters(self, padded: bool = True) -> int:
        """How many numbers its parameters are, with or without the padding of the vocabulary."""
        return sum(math.prod(shape) for shape in self.shapes(padded).values())


def list_presets() -> list[str]:
    """The names, in the order of the file: the small ones first."""
    return list(_table())


def load_preset(name: str) -> Preset:
    """The preset of this name. Raises CaseError, which names all there are."""
    if name not in _table():
        raise CaseError(f"model {name!r}: there are {', '.join(list_presets())}")
    entry = _table()[name]
    dims, make = entry["dims"], FAMILIES[entry["family"]]
    family = make(dims["L"])
    (variant,) = family.variants
    sizes = {option: dims[letter] for option, letter in variant.sizes.items()}
    options = {**variant.options, **entry.get("options", {}), **sizes}
    return Preset(name, family.layer, family, dims, options, entry["source"], entry.get("parameters"))


@cache
def _table() -> dict[str, dict[str, Any]]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))
