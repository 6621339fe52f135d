"""The GPUs, their links, their driver, and whether a machine file describes them; as `nvidia-smi` tells."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parity.cost import list_machines, load_machine
from parity.doctor.place import Finding, Place, check

QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
TOPOLOGY = ("nvidia-smi", "topo", "-m")
LINK_BYTES_PER_S = 25e9  # NVLink 3, one link, each way
OLDEST_DRIVER = {"12": 525, "13": 580}  # by CUDA's major version
DRIVERS = "https://docs.jax.dev/en/latest/installation.html"


@dataclass(frozen=True)
class Gpu:
    """One line of nvidia-smi."""

    name: str
    memory_mib: str
    driver: str


def read_gpus(place: Place) -> list[Gpu]:
    """The GPUs of the node, those too that CUDA_VISIBLE_DEVICES hides; [] without nvidia-smi or a driver."""
    rows = [line.split(", ") for line in (place.run(QUERY) or "").splitlines()]
    return [Gpu(*row) for row in rows if len(row) == 3 and row[2][:1].isdecimal()]


def read_links(text: str) -> dict[tuple[int, int], str]:
    """(i, j) -> how `nvidia-smi topo -m` says that GPUs i < j are linked: "NV4" four NVLinks, "SYS", "PHB", ..."""
    rows = {int(row[1]): row[2].split() for row in re.finditer(r"^\s*GPU(\d+)\s+(.*\bX\b.*)$", text, re.MULTILINE)}
    return {(i, j): rows[i][j] for i, j in itertools.combinations(sorted(rows), 2)}


def gpu_findings(place: Place, gpus: Sequence[Gpu], facts: Mapping[str, dict[str, Any]]) -> Iterator[Finding]:
    """What there is, what each framework sees of it, and which machine file fits."""
    if not gpus:
        what = "nvidia-smi shows no GPU: --device cpu, and A100s that are not there, work"
        yield Finding("note", "GPUs", what, "on a cluster, run this on a compute node")
        return
    names = " and ".join(sorted({f"{gpu.name} of {gpu.memory_mib} MiB" for gpu in gpus}))
    yield Finding("ok", "GPUs", f"{len(gpus)} x {names}, driver {gpus[0].driver}")
    for name, told in facts.items():
        yield _framework_finding(place, name, told, gpus)
    links = read_links(place.run(TOPOLOGY) or "")
    bare = [f"GPU{i}-GPU{j} {link}" for (i, j), link in links.items() if not link.startswith("NV")]
    shown = f"without NVLink: {', '.join(bare)}" if bare else f"{', '.join(sorted(set(links.values())))} for every pair"
    do = "keep tensor parallelism within pairs that NVLink joins; no machine file describes PCIe"
    yield check(bool(bare), "warning", "NVLink", shown if links else "nvidia-smi topo -m tells of no pairs", do)
    fits = [name for name in list_machines() if _fits(name, place, gpus, links)]
    what = f"as in {', '.join(fits)}" if fits else f"none of {', '.join(list_machines())} is a node like this"
    do = "parity calibrate --local --device cuda --base NAME writes one"
    yield check(not fits, "note", "machine file", what, do)


def _framework_finding(place: Place, name: str, told: Mapping[str, Any], gpus: Sequence[Gpu]) -> Finding:
    """Whether its build fits the driver and it sees all GPUs."""
    build = f"{name} {told['version']}"
    if told["cuda"] is None:
        do = "pip install 'jax[cuda12]'" if name == "jax" else "https://pytorch.org/get-started/locally has CUDA builds"
        return Finding("problem", "GPUs", f"{build} is built for CPUs only", do, DRIVERS)
    oldest = OLDEST_DRIVER.get(told["cuda"].partition(".")[0], 0)
    if int(gpus[0].driver.partition(".")[0]) < oldest:
        what = f"{build} is built for CUDA {told['cuda']}, which needs driver {oldest}; this one is {gpus[0].driver}"
        return Finding("problem", "GPUs", what, "take the builds for CUDA 12: jax[cuda12], torch of cu126", DRIVERS)
    masked = place.env.get("CUDA_VISIBLE_DEVICES")
    what = f"{build} (CUDA {told['cuda']}) sees {told['num_gpus']} of {len(gpus)}"
    if masked is not None:
        return Finding(
            "note" if told["num_gpus"] < len(gpus) else "ok", "GPUs", f"{what}, CUDA_VISIBLE_DEVICES={masked}"
        )
    do = f"`python -m {name}_tp.doctor` in that environment shows why"
    return check(told["num_gpus"] < len(gpus), "problem", "GPUs", what, do, DRIVERS)


def _fits(name: str, place: Place, gpus: Sequence[Gpu], links: Mapping[tuple[int, int], str]) -> bool:
    """Whether a machine's node has these GPUs, links as fast, and, where Slingshot is seen, as many NICs."""
    machine, num_nics = load_machine(name), len(place.find("/sys/class/net", "hsn*"))
    if machine.gpus_per_node != len(gpus) or any(machine.gpu.name not in gpu.name for gpu in gpus):
        return False
    to_first = [int(link[2:]) if link.startswith("NV") else 0 for (i, _), link in links.items() if i == 0]
    num_links = max(to_first, default=0) if machine.topology == "switch" else sum(to_first)
    return num_links * LINK_BYTES_PER_S == machine.nvlink_bytes_per_s and num_nics in (0, machine.nics_per_node)
