"""Which collectives DTensor's sharding propagation inserts, given the layouts of the operands; needs no device.

A program is a function of global tensors. DTensor handles one operator at a time: among the layouts that the operator
supports, it chooses the one that is cheapest to redistribute the operands to, by its own cost estimate.
Partial sums stay partial until something forces their reduction; here they are reduced at the end, as XLA does.

Sources: https://docs.pytorch.org/docs/stable/distributed.tensor.html;
torch/distributed/tensor/_sharding_prop.py (the choice), _collective_utils.py (the costs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.distributed._functional_collectives as funcol
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
    placement_types,
)

from parity.question_contract import Letters, PartitionQuestion
from torch_tp.mesh import make_mesh
from torch_tp.trace import Call, RecordCollectives

PROGRAMS: dict[str, Callable[..., torch.Tensor]] = {
    "matmul": lambda x, w: x @ w,
    "linear": lambda x, w, b: torch.nn.functional.linear(x, w.T, b),
    "scores": lambda q, k: torch.einsum("bhqe,bhke->bhqk", q, k),
    "add": lambda x, z: x + z,
    "sum_rows": lambda x: x.sum(0),
    "sum_columns": lambda x: x.sum(1),
    "sum_all": lambda x: x.sum(),
    "softmax": lambda x: x.softmax(1),
}


def layout_of(letters: Letters) -> tuple[Placement, ...]:
    """("S0", "R") -> (Shard(0), Replicate()): a placement per mesh axis."""
    return tuple(Replicate() if letter == "R" else Shard(int(letter[1:])) for letter in letters)


def letters_of(layout: tuple[Placement, ...]) -> Letters:
    """The inverse of `layout_of`; "P" for a partial sum."""
    return tuple(f"S{one.dim}" if isinstance(one, Shard) else "P" if one.is_partial() else "R" for one in layout)


def operand(mesh: DeviceMesh, shape: tuple[int, ...], layout: tuple[Placement, ...], dtype: str) -> DTensor:
    """A tensor without data, laid out over the mesh."""
    whole = torch.empty(shape, dtype=getattr(torch, dtype), device=mesh.device_type)
    return distribute_tensor(whole, mesh, layout, src_data_rank=None)


@contextmanager
def all_to_alls_of_nccl() -> Iterator[None]:
    """Use the all-to-all that a CUDA mesh issues for Shard(i) -> Shard(j).

    On a CPU mesh DTensor all-gathers and keeps its chunk instead, as if gloo had no all-to-all.
    """

    def native(x: torch.Tensor, gather_dim: int, shard_dim: int, mesh: DeviceMesh, mesh_dim: int) -> torch.Tensor:
        group = funcol._group_or_group_name(funcol._resolve_group((mesh, mesh_dim)))
        return torch.ops._dtensor.shard_dim_alltoall(x, gather_dim, shard_dim, group)

    with patch.object(placement_types, "shard_dim_alltoall", native):
        yield


def partition(question: PartitionQuestion) -> tuple[list[Call], Letters]:
    """The collectives that one device dispatches, and the layout of the result. Call inside `fake_group`.

    Propagates DTensor's exception if it cannot compute the program in these layouts.
    """
    mesh = make_mesh(question.mesh, "cpu")
    layouts = map(layout_of, question.layouts)
    operands = [operand(mesh, *one, question.dtype) for one in zip(question.shapes, layouts, strict=True)]
    with RecordCollectives(mesh) as record:
        result = PROGRAMS[question.program](*operands)
        whole = tuple(Replicate() if isinstance(one, Partial) else one for one in result.placements)
        result = result.redistribute(placements=whole if question.output is None else layout_of(question.output))
    return record.calls, letters_of(result.placements)
