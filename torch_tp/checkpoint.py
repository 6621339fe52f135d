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

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from parity.checkpoint_format import Checkpoint, CheckpointError, begin, finish, write_rank
from parity.checkpoint_seal import raise_first
from parity.contract import Shard
from torch_tp.layouts import canonical, describe, native_name, to_tensor

COUNT = "count"
MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}


def is_writer(tensor: DTensor) -> bool:
    """Whether this process is the first of those that hold this shard."""
    root = tensor.device_mesh._get_root_mesh()  # replicas may lie along an axis that is not in the tensor's own mesh
    where = dict(zip(root.mesh_dim_names or (), root.get_coordinate() or (), strict=True))
    own = dict(zip(tensor.device_mesh.mesh_dim_names or (), tensor.placements, strict=True))
    # Not `is_shard`, which is False for the `_StridedShard` that `fully_shard` makes of a tp shard.
    return all(place == 0 or (axis in own and not own[axis].is_replicate()) for axis, place in where.items())


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
    """A parameter's name in a checkpoint: without the prefix that the wrapper of `hybrid.py` adds."""
    return name.removeprefix("inner.")


def named_tensors(names: Sequence[str], module: nn.Module, optimizer: AdamW | None) -> dict[str, DTensor]:
    """Parameters and moments by canonical name and in canonical orientation, as views of the module's tensors."""
    params = dict(module.named_parameters())
    found = {}
    for name, native in native_names(names, params).items():
        param, stored = params[native], stored_name(name)
        found[stored] = canonical(name, param.detach())
        if optimizer is not None:
            state = start_state(optimizer, param)
            found |= {f"{stored}.{end}": canonical(name, state[key]) for end, key in MOMENTS.items()}
    return found


def start_state(optimizer: AdamW, param: nn.Parameter) -> dict[str, torch.Tensor]:
    """The optimizer's state of a parameter; created as AdamW does if there has been no step yet."""
    state: dict[str, torch.Tensor] = optimizer.state[param]
    if not state:
        state |= {"step": torch.tensor(0.0)} | {key: torch.zeros_like(param) for key in MOMENTS.values()}
    return state


def save(
    directory: Path,
    names: Sequence[str],
    module: nn.Module,
    optimizer: AdamW | None = None,
    schedule: LambdaLR | None = None,
) -> None:
    """Write a checkpoint; collective. It appears at `directory` complete or not at all.

    names: the canonical names of all parameters: the keys of the state that the module was built from.
    Raises CheckpointError if `directory` exists, or for names that are not the module's.
    """
    rank = dist.get_rank()
    shards = []
    for name, tensor in named_tensors(names, module, optimizer).items():
        values, index, partial = describe(tensor)
        if is_writer(tensor):
            shards.append((name, Shard(tuple(tensor.shape), tuple(index), values.dtype.name, tuple(partial)), values))
    if schedule is not None and rank == 0:
        count = torch.tensor(schedule.last_epoch).numpy()
        shards.append((COUNT, Shard((), (), "int64"), count))
    together(directory, lambda: begin(directory) if rank == 0 else None)
    together(directory, lambda: write_rank(directory, rank, shards))
    together(directory, lambda: finish(directory) if rank == 0 else None)


def load(
    directory: Path,
    names: Sequence[str],
    module: nn.Module,
    optimizer: AdamW | None = None,
    schedule: LambdaLR | None = None,
) -> None:
    """Read a checkpoint into a module (and an optimizer with its schedule), however it is sharded; collective.

    Raises CheckpointError for a checkpoint that is damaged or belongs to another model.
    """
    tensors = named_tensors(names, module, optimizer)

    def read() -> None:
        checkpoint = Checkpoint(directory)
        checkpoint.check_names([*tensors, *([] if schedule is None else [COUNT])])
        with torch.no_grad():
            for name, tensor in tensors.items():
                held, index, _ = describe(tensor)
                values = checkpoint.read(name, tensor.shape, held.dtype.name, index)
                tensor.to_local().copy_(to_tensor(values, tensor.device_mesh.device_type))
        if optimizer is not None and schedule is not None:
            resume(optimizer, schedule, int(checkpoint.read(COUNT, (), "int64", ())))

    together(directory, read)


def together(directory: Path, work: Callable[[], Any]) -> None:
    """Run a function on all ranks and wait; if it fails on one, all raise CheckpointError with its message."""
    line, cause = "", None
    try:
        work()
    except CheckpointError as refused:
        line = str(refused)
    except dcp.CheckpointException as failed:  # raised on every rank, with the errors of all
        cause = next(iter(failed.failures.values()))[0]
    except Exception as failed:  # a damaged file can make a reader raise anything
        cause = failed
    if cause is not None:
        line = f"{directory}: {type(cause).__name__} {cause}".splitlines()[0]
    lines = [line] * dist.get_world_size()
    dist.all_gather_object(lines, line)
    raise_first(lines, cause)


def resume(optimizer: AdamW, schedule: LambdaLR, count: int) -> None:
    """Set the step counts: of AdamW's bias correction and of the learning rate schedule."""
    for state in optimizer.state.values():
        state["step"].fill_(count)
    schedule.last_epoch = count
    rates = zip(optimizer.param_groups, schedule.lr_lambdas, schedule.base_lrs, strict=True)
    for group, rate, base in rates:
        group["lr"] = base * rate(count)
