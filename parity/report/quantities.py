"""Quantities for people: three digits and a unit."""

from __future__ import annotations


def digits(value: float) -> str:
    """Three, and all before the point: 8.72, 87.2, 872, 8,720."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{decimals}f}"


def size_text(num_bytes: float) -> str:
    """Bytes in powers of ten, three digits: 8.72 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{digits(num_bytes / factor)} {unit}"
    return f"{num_bytes:.0f} B"
