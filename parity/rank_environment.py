"""The environment variables of a rank, and the port at which its group meets."""

from __future__ import annotations

import os
import random
import socket

from parity.interpreter import worker_environment


def rank_environment(rank: int, world: int, port: int) -> dict[str, str]:
    """torchrun's variables, and a thread count that divides the cores among the ranks unless the user has set one."""
    threads = max(1, len(os.sched_getaffinity(0)) // world)
    defaults = {"OMP_NUM_THREADS": str(threads), "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
    place = {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return {**defaults, **worker_environment(), **place}


def free_port() -> int:
    """A free port below the usual ephemeral range.

    Rank 0 binds it only after seconds of imports; until then the kernel could give an ephemeral port to any process.
    """
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
