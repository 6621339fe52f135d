"""Save and load with PyTorch's distributed checkpoint (DCP), at any tp degree, bit for bit, with checksums.

    model.NAME                    parameters by their path in the module, as PyTorch stores them: weights are [out, in]
    optimizer.state.NAME.exp_avg  moments and step counts of AdamW; optimizer.param_groups.NAME.lr: its hyperparameters
    count                         steps done, an int64

Any DCP program can read such a directory. To convert to the neutral format, which the other framework reads, load with
this module and save with checkpoint.py. Checksums are stored beside DCP's files (parity/checkpoint_seal.py): DCP itself
reads a hole of zeros in a file as numbers.

Source: https://docs.pytorch.org/docs/stable/distributed.checkpoint.html
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from parity.checkpoint_format import begin, unfinished
from parity.checkpoint_seal import check_contents, seal, verify
from torch_tp.checkpoint import COUNT, resume, start_state, together

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def state_of(module: nn.Module, optimizer: AdamW | None, schedule: LambdaLR | None) -> dict[str, Any]:
    """The contents of a checkpoint by name; the tensors are the module's and the optimizer's own."""
    state = {f"model.{name}": value for name, value in get_model_state_dict(module).items()}
    if optimizer is not None:
        for param in module.parameters():
            start_state(optimizer, param)  # PyTorch would run a step to create it
        held = get_optimizer_state_dict(module, optimizer, options=FLAT)
        state |= {f"optimizer.{name}": value for name, value in held.items()}
    if schedule is not None:
        state[COUNT] = torch.tensor(schedule.last_epoch)
    return state


def save(directory: Path, module: nn.Module, optimizer: AdamW | None = None, schedule: LambdaLR | None = None) -> None:
    """Write a checkpoint; collective. It appears at `directory` complete or not at all.

    Raises CheckpointError if `directory` exists.
    """
    rank, part = dist.get_rank(), unfinished(directory)
    together(directory, lambda: begin(directory) if rank == 0 else None)
    together(directory, lambda: dcp.save(state_of(module, optimizer, schedule), checkpoint_id=part))
    together(directory, lambda: seal(part, rank, dist.get_world_size()))
    together(directory, lambda: os.replace(part, directory) if rank == 0 else None)


def load(directory: Path, module: nn.Module, optimizer: AdamW | None = None, schedule: LambdaLR | None = None) -> None:
    """Read a checkpoint into a module (and an optimizer with its schedule), however it is sharded; collective.

    Raises CheckpointError for a checkpoint that is damaged or belongs to another model.
    """
    together(directory, lambda: verify(directory, dist.get_rank(), dist.get_world_size()))
    state = state_of(module, optimizer, schedule)
    together(directory, lambda: check_contents(directory, contents(directory), shapes(state)))
    together(directory, lambda: dcp.load(state, checkpoint_id=directory))
    set_model_state_dict(module, part_of(state, "model."))
    if optimizer is not None:
        set_optimizer_state_dict(module, optimizer, part_of(state, "optimizer."), options=FLAT)
        if schedule is not None:
            resume(optimizer, schedule, int(state[COUNT]))


def contents(directory: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every entry of a checkpoint; an empty shape and no dtype for what is not a tensor."""
    held = dcp.FileSystemReader(directory).read_metadata().state_dict_metadata
    return {
        name: (tuple(entry.size), str(entry.properties.dtype).removeprefix("torch."))
        if isinstance(entry, TensorStorageMetadata)
        else ((), "")
        for name, entry in held.items()
    }


def shapes(state: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every entry of a state, as in `contents`."""
    return {
        name: (tuple(value.shape), str(value.dtype).removeprefix("torch."))
        if isinstance(value, torch.Tensor)
        else ((), "")
        for name, value in state.items()
    }


def part_of(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names start with the prefix, with the prefix removed."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
