"""Save a sharded module and its optimizer; load them at any tp degree, in either framework, bit for bit.

    name               canonical: `blocks.0.attention.q.w` [in, out], whatever the framework's own name and orientation
    name.m, name.v     the moments of AdamW, with the layout of the parameter
    count              number of steps done, a scalar int64

Each device writes the shard that it holds (one device per set of replicas) and reads the part that it needs: nothing is
gathered, and only error messages are sent. `parity.checkpoint_format` defines the files; all processes must see the
same file system.
A data-parallel module (hybrid.py) is stored under the names of the module that it wraps, so a checkpoint is independent
of the parallelism. native_checkpoint.py writes the framework's own format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental.multihost_utils import process_allgather

from jax_tp.layouts import named_parameters, native_name
from jax_tp.optimizer import moments
from parity.checkpoint_format import Checkpoint, CheckpointError, begin, finish, write_rank
from parity.checkpoint_seal import raise_first
from parity.contract import Shard

COUNT = "count"
LINE_BYTES = 1000  # of an error message sent between processes


def native_names(names: Sequence[str], held: Iterable[str]) -> dict[str, str]:
    """The module's parameter names by canonical name.

    Raises CheckpointError for a name that the module does not have, and for a parameter without a canonical name.
    """
    native, held = {name: native_name(name) for name in names}, set(held)
    for name, own in native.items():
        if own not in held:
            raise CheckpointError(f"{name}: the module has no parameter {own}")
    for own in sorted(held - set(native.values())):
        raise CheckpointError(f"{own}: the module has it, and it is not among the names of parameters to save or load")
    return native


def stored_name(name: str) -> str:
    """A parameter's name in a checkpoint, which knows no parallelism: what `hybrid.py` wraps has its own name."""
    return name.removeprefix("inner.")


def named_tensors(names: Sequence[str], module: nnx.Module, optimizer: nnx.Optimizer | None) -> dict[str, nnx.Variable]:
    """Parameters and moments by canonical name."""
    parts = [("", named_parameters(nnx.state(module, nnx.Param)))]
    if optimizer is not None:
        parts += zip((".m", ".v"), moments(optimizer), strict=True)
    native = native_names(names, parts[0][1])
    return {f"{stored_name(name)}{end}": values[native[name]] for name in names for end, values in parts}


def save(directory: Path, names: Sequence[str], module: nnx.Module, optimizer: nnx.Optimizer | None = None) -> None:
    """Write a checkpoint; collective. It appears at `directory` complete or not at all.

    names: the canonical names of all parameters: the keys of the state that the module was built from.
    Raises CheckpointError if `directory` exists, or for names that are not the module's.
    """
    rank = jax.process_index()
    shards = []
    for name, variable in named_tensors(names, module, optimizer).items():
        array = variable.get_value()
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                index = tuple(part.indices(size)[:2] for part, size in zip(shard.index, array.shape, strict=True))
                shards.append((name, Shard(array.shape, index, array.dtype.name), np.asarray(shard.data)))
    if optimizer is not None and rank == 0:
        count = np.asarray(optimizer.step.get_value()).astype(np.int64)
        shards.append((COUNT, Shard((), (), "int64"), count))
    together(directory, lambda: begin(directory) if rank == 0 else None)
    together(directory, lambda: write_rank(directory, rank, shards))
    together(directory, lambda: finish(directory) if rank == 0 else None)


def load(directory: Path, names: Sequence[str], module: nnx.Module, optimizer: nnx.Optimizer | None = None) -> None:
    """Read a checkpoint into a module (and an optimizer with its schedule), however it is sharded; collective.

    Raises CheckpointError for a checkpoint that is damaged or belongs to another model.
    """
    tensors, stored = named_tensors(names, module, optimizer), {native_name(name): stored_name(name) for name in names}

    def read() -> None:
        checkpoint = Checkpoint(directory)
        checkpoint.check_names([*tensors, *([] if optimizer is None else [COUNT])])
        values = {name: read_array(checkpoint, name, variable.get_value()) for name, variable in tensors.items()}
        params = nnx.to_flat_state(nnx.state(module, nnx.Param))
        for path, variable in params:
            variable.set_value(values[stored[".".join(map(str, path))]])
        nnx.update(module, nnx.from_flat_state(params))
        if optimizer is not None:
            count = int(checkpoint.read(COUNT, (), "int64", ()))
            moved = {f"{own}.{end}": values[f"{name}.{end}"] for own, name in stored.items() for end in "mv"}
            resume(optimizer, moved, count)

    together(directory, read)


def together(directory: Path, work: Callable[[], Any]) -> None:
    """Run a function in all processes and wait; if it fails in one, all raise CheckpointError with its message."""
    line, cause = "", None
    try:
        work()
    except CheckpointError as refused:
        line = str(refused)
    except Exception as failed:  # a damaged file can make a reader raise anything
        line, cause = f"{directory}: {type(failed).__name__} {failed}".splitlines()[0], failed
    lines = [line]
    if jax.process_count() > 1:
        padded = np.frombuffer(line.encode()[:LINE_BYTES].ljust(LINE_BYTES), np.uint8)
        lines = [bytes(own).decode(errors="replace").strip() for own in process_allgather(padded)]
    raise_first(lines, cause)


def read_array(checkpoint: Checkpoint, name: str, like: jax.Array) -> jax.Array:
    """A tensor of the checkpoint, sharded like another array; each device reads its part."""

    def part(index: tuple[slice, ...]) -> np.ndarray:
        ranges = [where.indices(size)[:2] for where, size in zip(index, like.shape, strict=True)]
        return checkpoint.read(name, like.shape, like.dtype.name, ranges)

    return jax.make_array_from_callback(like.shape, like.sharding, part)


def resume(optimizer: nnx.Optimizer, values: dict[str, jax.Array], count: int) -> None:
    """Set the moments, given as "<parameter's path>.m", and the step counts of bias correction and schedule."""
    state = nnx.to_flat_state(nnx.state(optimizer))
    for path, variable in state:
        value, end = variable.get_value(), {"mu": "m", "nu": "v"}.get(path[2] if len(path) > 2 else "")
        if end is not None:
            variable.set_value(values[".".join([*map(str, path[3:]), end])])
        elif path[-1] in ("count", "step"):
            variable.set_value(jax.device_put(np.asarray(count, value.dtype), value.sharding))
    nnx.update(optimizer, nnx.from_flat_state(state))
