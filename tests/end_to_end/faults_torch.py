"""The faults of faulty_worker.py, as replacements of names in torch_tp.

`replacements(fault)` is {name: original -> replacement}; names are looked up in the modules that it lists.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

Replace = Callable[[Any], Any]


def identity(original: Any) -> Any:
    return lambda x, axis: x


def twice(original: Any) -> Any:
    return lambda x, axis: original(original(x, axis) / axis.size(), axis)


def summed_backward_too(original: Any) -> Any:
    """The transpose of the all-reduce is taken for an all-reduce, as `torch.distributed.nn.all_reduce` does."""
    from torch_tp.collectives import copy_to_tp

    return lambda x, axis: original(copy_to_tp(x, axis), axis)


def from_the_next(original: Any) -> Any:
    return lambda x, axis, source: original(x, axis, (source + 1) % axis.size())


def but_over_x(original: Any) -> Any:
    return lambda x, axis: x if axis.mesh_dim_names == ("x",) else original(x, axis)


def with_bias_before(original: Any) -> Any:
    """g after the bias, as if the bias were part of the product."""

    class Wrong(original):
        def body(self, x, w, b):  # type: ignore[no-untyped-def]
            from torch_tp.collectives import reduce_from_tp

            return reduce_from_tp(torch.nn.functional.linear(x, w, b), self.axis)

    return Wrong


def swapped(original: Any) -> Any:
    """The first and second shard of every sharded parameter change places."""

    def place(array, mesh, placement):  # type: ignore[no-untyped-def]
        if isinstance(placement, Shard) and array.ndim <= 2:
            parts = list(torch.from_numpy(array).chunk(mesh.size(), placement.dim))
            parts[0], parts[1] = parts[1], parts[0]
            array = torch.cat(parts, placement.dim).numpy()
        return original(array, mesh, placement)

    return place


def replicated(original: Any) -> Any:
    """Weights are placed whole on every device, x and y as they should be."""

    def place(array, mesh, placement):  # type: ignore[no-untyped-def]
        return original(array, mesh, Replicate() if array.ndim == 2 else placement)

    return place


def cut_as_one(original: Any) -> Any:
    """Of weights packed one after the other, [C, F, D], each device takes the same share of all C F columns."""

    def place(array, mesh, placement):  # type: ignore[no-untyped-def]
        if array.ndim == 3 and placement == Shard(1):
            shards = np.split(array.reshape(-1, array.shape[2]), mesh.size())
            array = np.concatenate([shard.reshape(len(array), -1, array.shape[2]) for shard in shards], 1)
        return original(array, mesh, placement)

    return place


def other_on_rank_1(original: Any) -> Any:
    def place(array, mesh, placement):  # type: ignore[no-untyped-def]
        return original(array + 1 if dist.get_rank() == 1 and array.ndim == 3 else array, mesh, placement)

    return place


def narrower_target(original: Any) -> Any:
    """The output is compared with a target of less precision, so y comes back narrower."""

    def step(*given):  # type: ignore[no-untyped-def]
        done = original(*given)
        return done._replace(y=done.y.to(torch.float32))

    return step


def optimizer_first() -> dict[str, Replace]:
    """The optimizer is built before `parallelize_module`, which then puts other parameters in place of its own."""
    before: list[torch.nn.Parameter] = []

    def parallelize(original: Any) -> Any:
        def remember(module, mesh, styles):  # type: ignore[no-untyped-def]
            before.extend(module.parameters())
            return original(module, mesh, styles)

        return remember

    def make(original: Any) -> Any:
        return lambda module, recipe: original(SimpleNamespace(parameters=lambda: before), recipe)

    return {"parallelize_module": parallelize, "make_optimizer": make}


def summed_over_all(original: Any) -> Any:
    """The squares of every gradient are summed over the devices, whether it is sharded or not."""

    def norm(grads):  # type: ignore[no-untyped-def]
        squares = [(grad.device_mesh, grad.to_local().square().sum()) for grad in grads]
        parts = [DTensor.from_local(square, mesh, [Partial()]) for mesh, square in squares]
        return torch.stack([part.redistribute(placements=[Replicate()]) for part in parts]).sum().sqrt()

    return norm


def by_local_place(original: Any) -> Any:
    """Each device draws the mask of its shard as if that were the whole: all shards have the same."""
    return lambda x, dim, axis: original(x, None, None)


def tanh_activation(original: dict[str, Any]) -> dict[str, Any]:
    return {**original, "gelu_erf": partial(torch.nn.functional.gelu, approximate="tanh")}


def styles_with(name: str, change: Replace) -> Replace:
    """Replace one class in a STYLES table of pairs or of classes."""

    def replace(original: dict[str, Any]) -> dict[str, Any]:
        return {
            style: tuple(change(cls) if cls.__name__ == name else cls for cls in entry)
            if isinstance(entry, tuple)
            else entry
            for style, entry in original.items()
        }

    return replace


def replacements(fault: str) -> dict[str, Replace]:
    return {
        "missing_all_reduce": {"reduce_from_tp": identity},
        "missing_gradient_all_reduce": {"copy_to_tp": identity},
        "bias_added_tp_times": {"STYLES": styles_with("ManualRowLinear", with_bias_before)},
        "swapped_shards": {"place": swapped},
        "gelu_tanh_for_erf": {"ACTIVATIONS": tanh_activation},
        "weight_replicated_by_accident": {"place": replicated},
        "other_input_on_one_rank": {"place": other_on_rank_1},
        "one_collective_too_many": {"reduce_from_tp": twice},
        "weights_never_move": optimizer_first(),
        "replicated_gradients_counted_tp_times": {"global_norm": summed_over_all},
        "decay_of_the_framework": {
            "Recipe": lambda original: lambda **given: original(**given | {"weight_decay": 1e-2})
        },
        "gradients_not_synced_over_dp": {"replicate": lambda original: lambda module, mesh: None},
        "panel_of_another_owner": {"broadcast": from_the_next},
        "norm_gradient_of_own_rows": {"copy_to_tp": but_over_x},
        "masks_by_local_place": {"positions": by_local_place},
        "gradients_times_tp": {"reduce_from_tp": summed_backward_too},
        "fused_weight_cut_as_one": {"place": cut_as_one},
        "norm_gradient_of_own_tokens": {"copy_to_tp": identity},
        "target_of_another_dtype": {"loss_and_gradients": narrower_target},
    }[fault]
