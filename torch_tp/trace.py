"""Which collectives a step issues: kind, axis, dtype, payload, pass; in dispatch order."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from torch_tp.mesh import inner_axes


def _payload_of_input(args: tuple[Any, ...], result: torch.Tensor) -> torch.Tensor:
    return args[0]


def _payload_of_result(args: tuple[Any, ...], result: torch.Tensor) -> torch.Tensor:
    return result


def _payload_of_list(args: tuple[Any, ...], result: Any) -> torch.Tensor:
    (tensor,) = args[0]  # several tensors would be several payloads
    return tensor


# The tensor whose size is the payload (S of nccl-tests): the whole buffer, the gathered output, the whole input.
COLLECTIVES: dict[str, tuple[str, Callable[..., torch.Tensor]]] = {
    "_c10d_functional::all_reduce": ("all_reduce", _payload_of_input),
    "_c10d_functional::all_gather_into_tensor": ("all_gather", _payload_of_result),
    "_c10d_functional::reduce_scatter_tensor": ("reduce_scatter", _payload_of_input),
    "_c10d_functional::all_to_all_single": ("all_to_all", _payload_of_input),
    "_c10d_functional::broadcast": ("broadcast", _payload_of_input),
    "_dtensor::shard_dim_alltoall": ("all_to_all", _payload_of_input),  # Shard(i) -> Shard(j), where NCCL carries it
    # As `fully_shard` and `replicate` call them, with the output as an argument.
    "c10d::_allgather_base_": ("all_gather", lambda args, result: args[0]),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", lambda args, result: args[1]),
    "c10d::allreduce_": ("all_reduce", _payload_of_list),
}
NAMESPACES = ("_c10d_functional", "c10d", "_dtensor")


def _is_permute(args: tuple[Any, ...]) -> bool:
    """Whether an all-to-all sends and receives its tensor as a single split, that is, one message per device."""
    _, receives, sends, _ = args
    return len(sends) > 1 and all(sum(size > 0 for size in splits) == 1 for splits in (receives, sends))


def _group_of(name: str, args: tuple[Any, ...]) -> dist.ProcessGroup:
    """The process group of a call: the last argument of functional collectives is its name; others take the group."""
    if isinstance(args[-1], str):
        return dist.distributed_c10d._resolve_process_group(args[-1])
    return dist.ProcessGroup.unbox(args[1] if name == "c10d::allreduce_" else args[2])


def _ranks(group: dist.ProcessGroup) -> tuple[int, ...]:
    return tuple(dist.get_process_group_ranks(group))


PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::addmm_", "aten::baddbmm")
NOT_COLLECTIVES = {"wait_tensor", "_wrap_tensor_autograd", "barrier"}
PACKAGE = Path(__file__).parent
HERE = ("trace.py", "footprint.py", "questions.py", "worker.py")  # who records and who asks
HELPERS = ("collectives.py", "train.py", "tasks.py", "steps.py")  # their callers are more informative


def source_line() -> str:
    """The innermost frame of this package outside the helpers, e.g. "torch_tp/mlp.py:131".

    autograd calls the backward pass, so there it is a transpose in collectives.py, or the line that starts the pass.
    """
    lines, frame = [], sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and path.name not in HERE:
            lines.append((path.name, f"{path.relative_to(PACKAGE.parent).as_posix()}:{frame.f_lineno}"))
        frame = frame.f_back
    best = [line for name, line in lines if name not in HELPERS] or [line for _, line in lines]
    return best[0] if best else ""


@dataclass(frozen=True)
class Call:
    """One collective, as dispatched.

    is_async: whether a matrix product is dispatched between the collective and the first wait for its result, or, for
    those of `fully_shard` and `replicate`, whether it runs on a stream of its own.
    Under `fake_group` functional collectives are always awaited where they are issued: they take a fake tensor mode for
    tracing and call `wait_tensor` at once, where eager PyTorch returns an AsyncCollectiveTensor. So for DTensor's own
    collectives a traced step shows the least overlap that an eager step would have.
    """

    kind: str
    axis: str
    dtype: str
    payload_bytes: int
    pass_: str  # "forward", "backward" or "optimizer"
    is_async: bool = False
    source_line: str = ""
    op_name: str = ""


@dataclass
class RecordCollectives(TorchDispatchMode):
    """Record every collective that runs inside `with RecordCollectives(mesh) as record`.

    `CommDebugMode` counts calls; this also takes the tensor and the group, which give the bytes and the mesh axis.
    """

    mesh: DeviceMesh
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        names = self.mesh.mesh_dim_names or ()
        self._scopes: list[str] = []  # names of the open `record_function` scopes
        self._num_products = 0
        self._awaited: dict[int, tuple[int, int]] = {}  # storage -> index of its call, number of products before it
        # Keyed by ranks: DTensor caches operators by mesh, and may use the groups of an equal mesh made elsewhere.
        self._axes = {_ranks(self.mesh.get_group(name)): name for name in names}
        for inner in inner_axes(self.mesh):
            several = [name for name in inner if self.mesh[name].size() > 1]
            if len(several) > 1:
                self._axes[_ranks(self.mesh[inner]._flatten("+".join(inner)).get_group())] = "+".join(several)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor first decomposes the operator into local ones and collectives
        result = func(*args, **(kwargs or {}))
        if func.namespace == "profiler":
            self._scopes = [*self._scopes, args[0]] if "enter" in func._schema.name else self._scopes[:-1]
        name = func._schema.name
        if name in COLLECTIVES:
            self._record(name, args, result)
        elif name == "_c10d_functional::wait_tensor":
            self._wait(args[0])
        elif func.namespace in NAMESPACES and name.partition("::")[2] not in NOT_COLLECTIVES:
            raise TypeError(f"{func} cannot be traced: use a collective listed in torch_tp/trace.py")
        elif name in PRODUCTS:
            self._num_products += 1
        return result

    def _record(self, name: str, args: tuple[Any, ...], result: torch.Tensor) -> None:
        kind, payload = COLLECTIVES[name]
        if name == "_c10d_functional::all_to_all_single" and _is_permute(args):
            kind = "permute"
        tensor = payload(args, result)
        group = _group_of(name, args)
        if group.size() == 1:
            return  # nothing leaves the device
        is_functional = isinstance(result, torch.Tensor)
        if is_functional:
            self._awaited[result.untyped_storage()._cdata] = len(self.calls), self._num_products
        self.calls.append(
            Call(
                kind=kind,
                axis=self._axes[_ranks(group)],
                dtype=str(tensor.dtype).removeprefix("torch."),
                payload_bytes=tensor.numel() * tensor.element_size(),
                pass_=self._pass(),
                is_async=not is_functional,  # issued by `fully_shard` and `replicate` on their own streams
                source_line=source_line(),
                op_name=name,
            )
        )

    def _wait(self, tensor: torch.Tensor) -> None:
        index, before = self._awaited.pop(tensor.untyped_storage()._cdata, (-1, self._num_products))
        if self._num_products > before:
            self.calls[index] = replace(self.calls[index], is_async=True)

    def _pass(self) -> str:
        if "optimizer" in self._scopes:
            return "optimizer"
        return "forward" if torch._C._current_graph_task_id() == -1 else "backward"  # inside autograd's engine?
