"""Cases before they are run, for the terminal: what each plan lays out and sends."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.text import Text

from parity.cases import family_of
from parity.contract import Case
from parity.sizes import sizes_text

INDENT = 4
LABEL = 10  # columns: "backward" and a gap


def describe_cases(heading: str, cases: Sequence[Case], width: int) -> Text:
    """Cases that differ in style, mesh and dtype only: what they have in common, and in what they differ.

    Lines are broken between tensors, collectives or names only, so that each can be read and searched for as a whole.
    """
    first = cases[0]
    family = family_of(first)
    params, batch = family.shapes(first)
    layouts = {name: family.tensors[name] for name in (*batch, "y", *params)}
    expected = family.expected(max(cases, key=lambda case: case.num_devices))
    paragraphs = {"tensors": [f"{name} [{layout}]" for name, layout in blocks_together(layouts).items()]}
    for pass_ in dict.fromkeys(entry.pass_ for entry in expected):
        own = (f"{entry.kind} {entry.elements} over {entry.axis}" for entry in expected if entry.pass_ == pass_)
        paragraphs[pass_] = counted(own)
    if not expected:
        paragraphs["sends"] = ["nothing"]
    text = Text(heading, style="bold")
    for label, items in paragraphs.items():
        add_paragraph(text, label, items, ",", width)
    differing = {
        "styles": [case.style for case in cases],
        "meshes": [sizes_text(case.mesh) for case in cases],
        "dtypes": [case.id.split("/")[5] for case in cases],
    }
    for label, names in differing.items():
        add_paragraph(text, label, list(dict.fromkeys(names)), "", width)
    return text


def blocks_together(layouts: Mapping[str, str]) -> dict[str, str]:
    """Tensors that all blocks of a model have, laid out alike, as one: `blocks.*.mlp.up.w`."""
    own: dict[str, set[str]] = {}
    for name, layout in layouts.items():
        own.setdefault(of_any_block(name), set()).add(layout)
    return {
        (of_any_block(name) if len(own[of_any_block(name)]) == 1 else name): layout for name, layout in layouts.items()
    }


def of_any_block(name: str) -> str:
    """`blocks.0.norm1.b` -> `blocks.*.norm1.b`."""
    return re.sub(r"\bblocks\.\d+\.", "blocks.*.", name)


def counted(names: Iterable[str]) -> list[str]:
    """In the order in which they first come; what comes n times as `n x name`."""
    return [name if count == 1 else f"{count} x {name}" for name, count in Counter(names).items()]


def add_paragraph(text: Text, label: str, items: Sequence[str], comma: str, width: int) -> None:
    """Append the items after their label, on as many lines as they need."""
    line = f"\n{'':{INDENT}}{label:{LABEL}}"
    is_empty = True
    for index, item in enumerate(items):
        word = item + comma * (index < len(items) - 1)
        if not is_empty and len(line) + len(word) > width:  # the line feed in it stands for the blank before the word
            text.append(line, style="not bold")
            line, is_empty = f"\n{'':{INDENT + LABEL}}", True
        line += word if is_empty else f" {word}"
        is_empty = False
    text.append(line, style="not bold")
