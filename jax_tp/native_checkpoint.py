"""Save and load with Orbax, JAX's checkpoint library, at any tp degree, bit for bit, with checksums.

    model        the parameters as Flax has them, by their path in the module: kernels are [in, out]
    optimizer    the state of nnx.Optimizer: moments and step counts of Optax

Any Orbax program can read such a directory. To convert to the neutral format, which the other framework reads, load
with this module and save with checkpoint.py. Checksums are stored beside Orbax's files (parity/checkpoint_seal.py):
Orbax itself detects damaged array data, with an error of many lines, but not damage to every file.

Source: https://orbax.readthedocs.io/en/latest/guides/checkpoint/checkpointing_pytrees.html
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from jax_tp.checkpoint import together
from parity.checkpoint_format import CheckpointError, begin, unfinished
from parity.checkpoint_seal import check_contents, seal, verify


def state_of(module: nnx.Module, optimizer: nnx.Optimizer | None) -> dict[str, Any]:
    """The contents of a checkpoint, as nested dicts of arrays."""
    state = {"model": nnx.to_pure_dict(nnx.state(module, nnx.Param))}
    if optimizer is not None:
        state["optimizer"] = nnx.to_pure_dict(nnx.state(optimizer))
    return state


def save(directory: Path, module: nnx.Module, optimizer: nnx.Optimizer | None = None) -> None:
    """Write a checkpoint; collective. It appears at `directory` complete or not at all.

    Raises CheckpointError if `directory` exists.
    """
    rank, part = jax.process_index(), unfinished(directory).absolute()

    def make_room() -> None:
        begin(directory)
        shutil.rmtree(part)  # Orbax creates it

    def write() -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(part, state_of(module, optimizer))

    together(directory, lambda: make_room() if rank == 0 else None)
    together(directory, write)
    together(directory, lambda: seal(part, rank, jax.process_count()))
    together(directory, lambda: os.replace(part, directory) if rank == 0 else None)


def load(directory: Path, module: nnx.Module, optimizer: nnx.Optimizer | None = None) -> None:
    """Read a checkpoint into a module (and an optimizer with its schedule), however it is sharded; collective.

    Raises CheckpointError for a checkpoint that is damaged or belongs to another model.
    """
    together(directory, lambda: verify(directory, jax.process_index(), jax.process_count()))
    like = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state_of(module, optimizer)
    )
    state: dict[str, Any] = {}

    def read() -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            held = checkpointer.metadata(directory.absolute()).item_metadata
            if held is None:
                raise CheckpointError(f"{directory}: Orbax finds no description of arrays in it")
            check_contents(directory, shapes(held.tree), shapes(like))
            state.update(checkpointer.restore(directory.absolute(), like))

    together(directory, read)
    put(module, nnx.Param, state["model"])
    if optimizer is not None:
        put(optimizer, ..., state["optimizer"])


def put(node: nnx.Module | nnx.Optimizer, kind: Any, values: dict[str, Any]) -> None:
    """Set the variables of a module or optimizer from nested dicts of arrays."""
    state = nnx.state(node, kind)
    nnx.replace_by_pure_dict(state, values)
    nnx.update(node, state)


def shapes(state: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of everything in nested dicts, by its dotted path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): (tuple(a.shape), np.dtype(a.dtype).name)
        for path, a in leaves
    }
