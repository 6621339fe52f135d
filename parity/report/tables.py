"""Tables as the reports of predictions have them."""

from __future__ import annotations

from rich import box
from rich.table import Table


def plain_table(*columns: str) -> Table:
    """With these columns on the left; those that follow hold figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def figures(table: Table, *columns: str) -> None:
    """Add columns of figures."""
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
