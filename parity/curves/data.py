"""Real input that needs no download: the source of Python's standard library, and scikit-learn's digits."""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from parity.cases.family import CaseError

# Modules that every CPython has, in this order, whatever else is installed.
MODULES = (
    "argparse",
    "calendar",
    "configparser",
    "contextlib",
    "csv",
    "dataclasses",
    "datetime",
    "fractions",
    "heapq",
    "inspect",
    "shutil",
    "statistics",
    "tarfile",
    "textwrap",
    "threading",
    "zipfile",
)

Batches = list[dict[str, np.ndarray]]  # one a step: inputs by name


class Data(NamedTuple):
    """Batches, and a line that says where they come from."""

    batches: Batches
    source: str


def read_text(folder: Path | None = None) -> tuple[bytes, str]:
    """All of MODULES, one after the other; and what they are. Raises CaseError where one is missing."""
    folder = folder or Path(sysconfig.get_path("stdlib"))
    parts = []
    for name in MODULES:
        # `zipfile`, for one, is a module in Python 3.11 and a package in 3.12.
        path = next((path for path in (folder / f"{name}.py", folder / name / "__init__.py") if path.is_file()), None)
        if path is None:
            raise CaseError(f"{folder} has no {name}.py: the text to train on is the source of the standard library")
        parts.append(path.read_bytes())
    text = b"".join(parts)
    digest = hashlib.sha256(text).hexdigest()[:12]
    files = f"{len(MODULES)} modules of the standard library of Python {platform.python_version()}, {MODULES[0]}.py to"
    return text, f"{files} {MODULES[-1]}, {len(text):,} bytes, SHA-256 {digest}"


def draw_text(dims: Mapping[str, int], num_steps: int, rng: np.random.Generator) -> Data:
    """x [B, S]: bytes of the text from random places on; labels: the byte after each."""
    text, source = read_text()
    ids = np.frombuffer(text, np.uint8).astype(np.int64)
    B, S = dims["B"], dims["S"]
    batches = []
    for _ in range(num_steps):
        windows = rng.integers(len(ids) - S, size=B)[:, None] + np.arange(S + 1)
        batches.append({"x": ids[windows[:, :-1]], "labels": ids[windows[:, 1:]]})
    return Data(batches, source)


def draw_digits(dims: Mapping[str, int], num_steps: int, rng: np.random.Generator) -> Data:
    """x [B, 1, 8, 8]: images drawn at random, 0 .. 16 as -1 .. 1; labels [B]: the digit. Raises CaseError."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise CaseError(
            "the images are scikit-learn's, which is not installed: pip install 'tp-parity[data]'"
        ) from None
    digits = load_digits()
    images = digits.images[:, None] / 8.0 - 1.0
    batches = []
    for _ in range(num_steps):
        chosen = rng.integers(len(images), size=dims["B"])
        batches.append({"x": images[chosen], "labels": digits.target[chosen].astype(np.int64)})
    return Data(batches, f"scikit-learn's {len(images):,} images of digits, 8 x 8")


DRAW: dict[str, Callable[[Mapping[str, int], int, np.random.Generator], Data]] = {
    "text": draw_text,
    "digits": draw_digits,
}
