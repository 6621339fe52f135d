"""Cores and threads, memory, shared memory."""

from __future__ import annotations

import re
from collections.abc import Iterator

from parity.doctor.place import Finding, Place, check

RANKS = 4  # of the default mesh
GIB = 2**30
NEEDED_BYTES = 4 * GIB
NCCL_DOC = "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html"


def system_findings(place: Place, has_gpus: bool) -> Iterator[Finding]:
    """Whether four ranks have cores, memory and, on GPUs, shared memory."""
    threads = place.env.get("OMP_NUM_THREADS", "")
    what = f"{place.cores} cores, OMP_NUM_THREADS={threads or 'not set'}: " + (
        f"of each of {RANKS} ranks" if threads else "parity run shares the cores among ranks"
    )
    too_many = threads.isdecimal() and int(threads) * RANKS > max(place.cores, RANKS)
    do = f"unset OMP_NUM_THREADS, or export OMP_NUM_THREADS={max(1, place.cores // RANKS)}"
    yield check(too_many, "warning", "cores", what, do)

    found = re.search(r"MemAvailable:\s+(\d+) kB", place.read("/proc/meminfo"))
    if found:
        available = int(found[1]) * 1024
        do = f"{NEEDED_BYTES // GIB} GiB serve {RANKS} ranks a framework: take fewer, --mesh tp=2, or free memory"
        what = f"{available / GIB:.1f} GiB available"
        yield check(available < NEEDED_BYTES, "warning", "memory", what, do)

    do = "in a container --shm-size=1g: ranks on GPUs without a direct link pass their messages through it"
    is_short = has_gpus and place.shm_bytes < GIB
    yield check(is_short, "warning", "memory", f"/dev/shm has {place.shm_bytes / GIB:.2g} GiB", do, NCCL_DOC)
