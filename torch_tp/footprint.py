"""What one device computes and holds in a step: its operations, with their local shapes, and its memory.

    matmul       batch x [m, k] [k, n]: 2 batch m n k floating-point operations
    memory       every other operation but views: its operands and results, each read or written once

    parameters, gradients, optimizer    as held between steps: shards, where they are sharded
    activations                         part of the peak: made by the forward pass, held when the backward pass begins
    temporaries                         part of the peak: the rest, e.g. gathered parameters, gradients of activations
    total                               the peak; gradients may not be allocated yet

These are the bytes of the tensors: an allocator's rounding and fragmentation are not included.
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

# Operators that read only as many rows of an operand as the result has.
LOOKUPS = ("aten::embedding", "aten::index", "aten::gather", "aten::index_select")
# Operators that allocate, or return metadata, and move no data.
FREE = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::lift_fresh", "aten::set_", "aten::_local_scalar")
OVERWRITTEN = ("aten::copy_", "aten::zero_", "aten::fill_")  # they write their output without reading it


@dataclass(frozen=True)
class Work:
    """One operation of one device; m, n, k and batch are those of a matmul."""

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
    """Like RecordCollectives, but also records every local operation and every allocation."""

    work: Counter[Work] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ledger = Ledger()
        self._is_paused = False

    def __enter__(self) -> RecordFootprint:
        """Also pause recording while DTensor infers a result's shape, which it does on tensors of the global shape."""
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
    """All tensors in nested lists and dicts."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def describe_work(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, pass_: str) -> Work:
    """The flops or bytes of one call of a local operator."""
    name = func._schema.name
    written = list(tensors_in(result))
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write and not written:
            written += tensors_in(value)  # in-place operators that return nothing
    read = list(tensors_in([args, {key: value for key, value in kwargs.items() if key != "out"}]))
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
    """The bytes of a tensor's elements; for an expanded tensor, those of the elements that exist."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@dataclass
class Ledger:
    """The allocations, resizes and frees of storages in order, as events (storage, change in bytes)."""

    events: list[tuple[int, int]] = field(default_factory=list)
    turn: int | None = None  # index of the event at which the backward pass begins

    def __post_init__(self) -> None:
        self._keys: MutableMapping[torch.UntypedStorage, int] = WeakIdKeyDictionary()
        self._sizes: list[int] = []
        self.resized: set[int] = set()  # `fully_shard` resizes gathered parameters

    def hold(self, tensor: torch.Tensor) -> int:
        """The key of the tensor's storage, which is counted from now on if it is new."""
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
        """Track `storage.resize_`, which dispatch modes do not see."""
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
        """The keys of the storages of these tensors."""
        return {self.hold(tensor) for tensor in tensors}

    def peak(self, classes: Mapping[str, set[int]]) -> dict[str, int]:
        """Bytes by class; "total", the peak; and the unclassified bytes that are held at the peak.

        These are "activations" if they were held when the backward pass began, else "temporaries".
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
