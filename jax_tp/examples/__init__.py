"""Four lessons, e01 to e04, on 4 devices: each prints the same text in both packages, figure by figure."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

# What JAX's CUDA plugin writes to stderr for each of its libraries where no driver is, before any log level counts.
NO_DRIVER = (b"All log messages before absl::InitializeLog() is called", b"Could not find cuda drivers on your machine")


@contextmanager
def without_driver_lines() -> Iterator[None]:
    """Pass on to stderr, at the end, what is written there inside, but for the lines that there is no CUDA driver."""
    sys.stderr.flush()
    theirs = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(theirs, 2)
            os.close(theirs)
            kept.seek(0)
            for line in kept:
                if not any(known in line for known in NO_DRIVER):
                    os.write(2, line)


with without_driver_lines():
    import jax  # noqa: F401  the lessons import it after this
