"""What one device computes and holds in a step: its own operations, by the shapes that it really has, and its memory.

    matmul       batch x [m, k] [k, n]: 2 batch m n k floating-point operations
    memory       everything else that is no view: a pass over its operands and results, each read or written once

    parameters, gradients, optimizer    as they lie between steps: shards, where they are sharded
    activations                         of the peak: made by the forward pass, and there when the backward pass begins
    temporaries                         of the peak: the rest, as gathered parameters and gradients of activations
    total                               the peak; gradients may not be there yet

Allocators round up and fragment; nothing of that is in these numbers.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from torch_tp.trace import PRODUCTS, RecordCollectives

# Operands of which rows are read, as many as the result has.
LOOKUPS = ("aten::embedding", "aten::index", "aten::gather", "aten::index_select")
# They allocate, or say something of a tensor, and move nothing.
FREE = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::lift_fresh", "aten::set_", "aten::_local_scalar")
OVERWRITTEN = ("aten::copy_", "aten::zero_", "aten::fill_")  # what they write they do not read


@dataclass(frozen=True)
class Work:
    """One operation of one device; m, n, k, batch of a matmul."""

    pass_: str
    kind: str  # "matmul" or "memory"
    name: str
    dtype: str
    m: int = 0
    n: int = 0
    k: int = 0
    batch: int = 0
    flops: int = 0
    moved_bytes: int = 0


@dataclass
class RecordFootprint(RecordCollectives):
    """Record also every local operation inside `with RecordFootprint(mesh) as record`, and who holds which bytes."""

    work: Counter[Work] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ledger = Ledger()
        self._is_paused = False

    def __enter__(self) -> RecordFootprint:
        """Leave out how DTensor finds out the global shape of a result: on tensors of that shape, once an operator."""
        find_out = ShardingPropagator._propagate_tensor_meta_non_cached

        def unseen(*args: Any) -> Any:
            self._is_paused = True
            try:
                return find_out(*args)
            finally:
                self._is_paused = False

        self._patches = ExitStack()
        self._patches.enter_context(patch.object(ShardingPropagator, "_propagate_tensor_meta_non_cached", unseen))
        self._patches.enter_context(self.ledger.watching_resizes())
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if result is NotImplemented or func.namespace == "profiler" or self._is_paused:
            return result
        pass_ = self._pass()
        if pass_ == "backward" and self.ledger.turn is None:
            self.ledger.turn = len(self.ledger.events)
        for tensor in tensors_in(result):
            self.ledger.hold(tensor)
        if func.namespace in ("aten", "fsdp") and not func.is_view and not func._schema.name.startswith(FREE):
            self.work[describe_work(func, args, kwargs or {}, result, pass_)] += 1
        return result


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """All tensors of nested lists and dicts."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def describe_work(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, pass_: str) -> Work:
    """What a call of a local operator costs."""
    name = func._schema.name
    written = list(tensors_in(result))
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write and not written:
            written += tensors_in(value)  # in place, with no result
    read = list(tensors_in([args, kwargs]))
    if name in OVERWRITTEN:
        read = read[1:]
    if name in LOOKUPS:
        read = [*written, *read[1:]]
    moved = sum(map(touched_bytes, [*read, *written]))
    dtype = str(written[0].dtype if written else read[0].dtype).removeprefix("torch.") if [*read, *written] else ""
    if name in PRODUCTS:
        left, right = args[-2:]
        m, k, n = left.shape[-2], left.shape[-1], right.shape[-1]
        batch = left.shape[0] if left.ndim == 3 else 1
        return Work(pass_, "matmul", name, dtype, m, n, k, batch, 2 * batch * m * n * k, moved)
    return Work(pass_, "memory", name, dtype, moved_bytes=moved)


def touched_bytes(tensor: torch.Tensor) -> int:
    """The bytes of a tensor's elements; of one that is expanded, those that are there."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@dataclass
class Ledger:
    """When which storage was allocated, resized and freed: events (storage, change in bytes), in order."""

    events: list[tuple[int, int]] = field(default_factory=list)
    turn: int | None = None  # the event at which the backward pass begins

    def __post_init__(self) -> None:
        self._keys: MutableMapping[torch.UntypedStorage, int] = WeakIdKeyDictionary()
        self._sizes: list[int] = []
        self.resized: set[int] = set()  # as `fully_shard` does it with whole parameters

    def hold(self, tensor: torch.Tensor) -> int:
        """The key of the tensor's storage; new ones are counted from now on."""
        storage = tensor.untyped_storage()
        if storage not in self._keys:
            key = self._keys[storage] = len(self._sizes)
            self._sizes.append(0)
            self._resize(key, storage.nbytes())
            weakref.finalize(storage, self._resize, key, 0).atexit = False
        return self._keys[storage]

    def _resize(self, key: int, size: int) -> None:
        if size != self._sizes[key]:
            self.events.append((key, size - self._sizes[key]))
            self._sizes[key] = size

    @contextmanager
    def watching_resizes(self) -> Iterator[None]:
        """Follow `storage.resize_`, which no dispatch mode sees."""
        resize = torch.UntypedStorage.resize_

        def watched(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            if storage in self._keys:
                self.resized.add(self._keys[storage])
                self._resize(self._keys[storage], size)
            return result

        with patch.object(torch.UntypedStorage, "resize_", watched):
            yield

    def keys(self, tensors: Iterable[torch.Tensor]) -> set[int]:
        """Of the storages of these tensors."""
        return {self.hold(tensor) for tensor in tensors}

    def peak(self, classes: Mapping[str, set[int]]) -> dict[str, int]:
        """Bytes by class, those of no class when most are held, and "total", the most that is held at once.

        What no class has is "activations" if it was there when the backward pass began, else "temporaries".
        """
        held, most, best = 0, 0, 0
        for i, (_, change) in enumerate(self.events):
            held += change
            if held > most:
                most, best = held, i + 1
        at_turn, at_peak = sizes_after(self.events[: self.turn]), sizes_after(self.events[:best])
        found = {name: sum(self._sizes[key] for key in keys) for name, keys in classes.items()}
        owned = set().union(*classes.values())
        rest = Counter({key: size for key, size in at_peak.items() if key not in owned})
        kept = sum(size for key, size in rest.items() if at_turn[key] > 0 and key not in self.resized)
        return {**found, "activations": kept, "temporaries": rest.total() - kept, "total": most}


def sizes_after(events: Iterable[tuple[int, int]]) -> Counter[int]:
    """Bytes by storage after these events."""
    sizes: Counter[int] = Counter()
    for key, change in events:
        sizes[key] += change
    return sizes
