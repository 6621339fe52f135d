"""Sizes by name, of a mesh or of dims, as text."""

from __future__ import annotations

from collections.abc import Mapping


def sizes_text(sizes: Mapping[str, int]) -> str:
    """As the command line takes them: `fsdp=2,tp=4`, `D=24,F=36`."""
    return ",".join(f"{name}={size}" for name, size in sizes.items())
