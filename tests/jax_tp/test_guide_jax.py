"""What the guide says of JAX, Flax, Optax and Orbax: names that can be imported, defaults that are so."""

from __future__ import annotations

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh

from parity.guide.tables import read_table

NAMES = sorted({name for row in read_table("concept") for name in row["jax"] if " " not in name})
DEFAULTS = read_table("default")


def resolve(name):
    """The object of a dotted name: modules first, then attributes."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AttributeError(name)


def clipped(values, max_norm) -> float:
    """The last of a gradient's elements after clipping."""
    return float(optax.clip_by_global_norm(max_norm).update(jnp.array(values), None)[0][-1])


@pytest.mark.parametrize("name", NAMES)
def test_name_is_there(name):
    assert resolve(name) is not None


@pytest.mark.parametrize("row", DEFAULTS, ids=lambda row: row["what"])
def test_default_is_what_the_guide_says(row):
    expression, value = row["jax_probe"]
    known = {"jax": jax, "jnp": jnp, "np": np, "nnx": nnx, "optax": optax, "inspect": inspect, "Mesh": Mesh}
    with jax.enable_x64(False):
        assert eval(expression, known | {"RNGS": nnx.Rngs(0), "clipped": clipped}) == value


def test_a_name_that_is_not_there_is_seen():
    with pytest.raises(AttributeError):
        resolve("jax.sharding.Shard")
