"""Dataclasses that cross the border between a worker and the harness as JSON. Standard library only."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import repeat
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Record:
    """A frozen dataclass of JSON's values, tuples, dicts and other records; the key of a field `pass_` is "pass"."""

    def to_json(self) -> dict[str, Any]:
        """With every field."""
        return {field.name.rstrip("_"): _encode(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` made this of. Raises TypeError for what is no record, lacks a field, or has one too many."""
        hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable
        if not isinstance(data, Mapping):
            raise TypeError(f"{cls.__name__}: {data!r:.40} is no record")
        if wrong := sorted(hints.keys() ^ data.keys()):
            raise TypeError(f"{cls.__name__}: {wrong[0]!r} {'is missing' if wrong[0] in hints else 'is unknown'}")
        return cls(**{hints[key][0]: _decode(hints[key][1], value) for key, value in data.items()})


@functools.cache
def _hints(kind: type[Record]) -> dict[str, tuple[str, Any]]:
    """key -> name and type of each field."""
    types = get_type_hints(kind)
    return {field.name.rstrip("_"): (field.name, types[field.name]) for field in fields(kind)}


def _encode(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, dict):
        return {key: _encode(one) for key, one in value.items()}
    return [_encode(one) for one in value] if isinstance(value, (list, tuple)) else value


def _decode(hint: Any, value: Any) -> Any:
    kind, parts = get_origin(hint), get_args(hint)
    if value is None:
        return None
    if kind is UnionType:  # of one type and None
        return _decode(parts[0], value)
    if kind is tuple:
        return tuple(map(_decode, repeat(parts[0]) if parts[-1] is ... else parts, value))
    if kind is dict:
        return {key: _decode(parts[1], one) for key, one in value.items()}
    return hint.from_json(value) if isinstance(hint, type) and issubclass(hint, Record) else value
