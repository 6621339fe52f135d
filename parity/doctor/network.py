"""Who starts the ranks, where they meet, and what carries their messages between nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from parity.doctor.place import Finding, Place, check


class Launcher(NamedTuple):
    """What a launcher sets in each process that it starts."""

    name: str
    rank: str
    world: str
    local_rank: tuple[str, ...]


LAUNCHERS = (
    Launcher("torchrun", "RANK", "WORLD_SIZE", ("LOCAL_RANK",)),
    Launcher("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_LOCAL_RANK",)),
    Launcher("PALS or MPICH", "PMI_RANK", "PMI_SIZE", ("PALS_LOCAL_RANKID", "MPI_LOCALRANKID")),
    Launcher("Slurm", "SLURM_PROCID", "SLURM_NTASKS", ("SLURM_LOCALID",)),
)
UNREAD = ("PMIX_RANK", "PALS_RANKID", "FLUX_TASK_RANK", "JSM_NAMESPACE_RANK", "MV2_COMM_WORLD_RANK")
DETECTED_BY_JAX = "https://docs.jax.dev/en/latest/multi_process.html"  # Slurm, Open MPI, Kubernetes, TPUs

PROXIES, EXCEPTIONS = ("grpc_proxy", "https_proxy", "http_proxy"), ("no_grpc_proxy", "no_proxy")  # first one set counts
GRPC = "https://grpc.github.io/grpc/core/md_doc_environment_variables.html"

# Named alike by ALCF's Polaris guide, CSCS and NCAR's tutorial.
ALCF = "https://docs.alcf.anl.gov/polaris/applications-and-libraries/libraries/nccl/"
NCAR = "https://negin513.github.io/distributed-pytorch-hpc/guide/nccl_tuning"
SLINGSHOT = {
    "NCCL_SOCKET_IFNAME": "hsn",
    "NCCL_CROSS_NIC": "1",
    "NCCL_NET_GDR_LEVEL": "PHB",
    "FI_CXI_DISABLE_HOST_REGISTER": "1",
    "FI_CXI_DEFAULT_CQ_SIZE": "131072",
    "FI_MR_CACHE_MONITOR": "userfaultfd",
}


def num_nodes(place: Place) -> int:
    """How many nodes the job has: PBS lists them in a file, Slurm counts them."""
    hosts = place.read(place.env["PBS_NODEFILE"]).split() if "PBS_NODEFILE" in place.env else []
    return max(1, len(set(hosts)), number(place.env, "SLURM_JOB_NUM_NODES", 1))


def number(env: Mapping[str, str], name: str, default: int) -> int:
    """A variable as a whole number; `default` if it is none."""
    text = env.get(name, "")
    return int(text) if text.isdecimal() else default


def launcher_findings(place: Place, facts: Mapping[str, dict[str, Any]]) -> Iterator[Finding]:
    """Whether the rank that a launcher made of this process is the one that `mesh.py` of each side reads."""
    env, seen = place.env, [one for one in LAUNCHERS if one.rank in place.env]
    if not seen:
        unread = next((name for name in UNREAD if name in env), None)
        what = "no launcher's variables: a process of its own; parity run starts the ranks of one node itself"
        if unread:
            what = f"{unread} is set, and no variable that mesh.py reads: each rank takes itself for the only one"
        do = "export RANK, WORLD_SIZE and LOCAL_RANK in a wrapper around the program"
        yield check(unread is not None, "problem", "launcher", what, do)
        return
    ranks = {one.name: (number(env, one.rank, 0), number(env, one.world, 1)) for one in seen}
    first = seen[0]
    told = "; ".join(f"{name}: rank {rank} of {world}" for name, (rank, world) in ranks.items())
    if len(set(ranks.values())) > 1:
        do = f"unset {first.rank} {first.world} {first.local_rank[0]}, unless {first.name} is at work"
        yield Finding("problem", "launcher", f"they disagree, and mesh.py takes the first: {told}", do)
    wrong = [name for name, one in facts.items() if (one["rank"], one["world"]) != ranks[first.name]]
    what = f"{told}; {wrong[0]}_tp/mesh.py reads another" if wrong else f"{told}; mesh.py of both sides reads it"
    do = f"RANK_VARIABLES and WORLD_VARIABLES of mesh.py must name {first.rank} and {first.world}"
    yield check(bool(wrong), "problem", "launcher", what, do, DETECTED_BY_JAX)
    local = next((number(env, name, 0) for name in first.local_rank if name in env), None)
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if local is None:
        what = f"none of {', '.join(first.local_rank)}: every rank takes device 0"
        yield Finding("warning", "launcher", what, "export LOCAL_RANK in a wrapper around the program")
    elif visible is not None and local >= len(visible.split(",")):
        what = f"local rank {local} takes device {local}, and CUDA_VISIBLE_DEVICES={visible} hides it"
        do = "let every rank see all GPUs of its node: no wrapper that gives each its own"
        yield Finding("problem", "launcher", what, do)


def meeting_findings(place: Place) -> Iterator[Finding]:
    """Where rank 0 is met: between nodes by MASTER_ADDR, on one node at a port of loopback."""
    nodes, host = num_nodes(place), place.env.get("MASTER_ADDR")
    if nodes > 1:
        what = f"{nodes} nodes, MASTER_ADDR={host or 'not set'}"
        do = "export MASTER_ADDR=$(head -1 $PBS_NODEFILE), or ranks of other nodes never meet rank 0"
        is_loopback = host in (None, "127.0.0.1", "localhost")
        level = "problem" if any(one.rank in place.env for one in LAUNCHERS) else "warning"
        yield check(is_loopback, level, "meeting point", what, do, "mesh.py: join")
    port = number(place.env, "MASTER_PORT", 29500)
    if refused := place.bind(0):
        what = f"no port of 127.0.0.1 can be bound: {refused}"
        yield Finding(
            "problem", "ports", what, "leave the sandbox or container that forbids it: ranks cannot meet here"
        )
        return
    refused = place.bind(port)
    what = f"127.0.0.1 can be bound, port {port}: {refused or 'free'}"
    do = "lessons under mpiexec meet there: export MASTER_PORT with a free one; parity run picks its own"
    yield check(bool(refused), "warning", "ports", what, do, "mesh.py: join")


def proxy_findings(place: Place) -> Iterator[Finding]:
    """A proxy takes JAX's calls of its coordinator, even on this node: `jax.distributed.initialize` hangs."""
    proxy = next((name for name in PROXIES if place.env.get(name)), None)
    host = place.env.get("MASTER_ADDR", "127.0.0.1")
    excepted = next((place.env[name] for name in EXCEPTIONS if place.env.get(name)), "")
    if proxy and not any(host.endswith(end.strip()) for end in excepted.split(",") if end.strip()):
        what = f"{proxy} is set, {host} not excepted: jax.distributed hangs, but for jax_tp, which excepts it itself"
        yield Finding("note", "proxy", what, f"in programs of your own: export no_grpc_proxy={host}", GRPC)


def slingshot_findings(place: Place, has_gpus: bool) -> Iterator[Finding]:
    """Between nodes NCCL needs a plugin for Slingshot, and without it silently takes TCP."""
    if not place.find("/sys/class/net", "hsn*") and not place.find("/dev", "cxi*"):
        return
    conf = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", place.read("/etc/nccl.conf"), re.MULTILINE))
    env, is_needed = {**conf, **place.env}, has_gpus and num_nodes(place) > 1
    plugin = _find_plugin(place, env)
    what = f"NCCL's plugin for libfabric: {plugin or 'not on LD_LIBRARY_PATH; between nodes NCCL silently takes TCP'}"
    do = "add the lib directory of aws-ofi-nccl to LD_LIBRARY_PATH; within one node it is not needed"
    yield check(plugin is None, "problem" if is_needed else "warning", "Slingshot", what, do, NCAR)
    net = env.get("NCCL_NET", "not set")
    do = 'export NCCL_NET="AWS Libfabric" fails instead of TCP; NCCL_DEBUG=INFO says "Using network ..."'
    yield check(net != "AWS Libfabric", "warning", "Slingshot", f"NCCL_NET={net}", do, NCAR)
    provider = env.get("FI_PROVIDER", "cxi")
    do = "unset FI_PROVIDER, or export FI_PROVIDER=cxi: another is no way over Slingshot's NICs"
    if "cxi" not in provider:
        yield Finding("warning", "Slingshot", f"FI_PROVIDER={provider}", do, ALCF)
    unset = [f"{name}={value}" for name, value in SLINGSHOT.items() if env.get(name) != value]
    what = f"{len(SLINGSHOT) - len(unset)} of {len(SLINGSHOT)} variables are as centres with Slingshot set them"
    yield check(bool(unset), "warning", "Slingshot", what, f"export {' '.join(unset)}", ALCF)


def _find_plugin(place: Place, env: Mapping[str, str]) -> Path | None:
    """Where NCCL finds its network plugin; NCCL_NET_PLUGIN is the end of its name, or its path.

    Source: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-net-plugin
    """
    given = env.get("NCCL_NET_PLUGIN", "")
    if given.startswith("/"):
        return next(iter(place.find(str(Path(given).parent), Path(given).name)), None)
    name = f"libnccl-net-{given}.so" if given else "libnccl-net.so"
    folders = [folder for folder in env.get("LD_LIBRARY_PATH", "").split(":") if folder.startswith("/")]
    return next((file for folder in (*folders, "/usr/lib64") for file in place.find(folder, name)), None)
