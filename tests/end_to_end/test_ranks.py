"""Who starts the processes says who they are: each starter's variables lead to the same group."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys

import pytest

# What each starter sets for rank 1 of 2, the second on its node.
STARTERS = {
    "torchrun": {"RANK": "{rank}", "WORLD_SIZE": "2", "LOCAL_RANK": "{rank}"},
    "pals": {"PMI_RANK": "{rank}", "PMI_SIZE": "2", "PALS_LOCAL_RANKID": "{rank}"},
    "openmpi": {
        "OMPI_COMM_WORLD_RANK": "{rank}",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": "{rank}",
    },
    "slurm": {"SLURM_PROCID": "{rank}", "SLURM_NTASKS": "2", "SLURM_LOCALID": "{rank}"},
}
# In one write, with a line of its own: Gloo prints to the same stdout, and not by lines.
PROGRAM = """
import os
from {package}.mesh import LOCAL_RANK_VARIABLES, join, leave, read_rank
who = *join("cpu"), read_rank(LOCAL_RANK_VARIABLES, 0)
leave()
os.write(1, "\\n{{}} {{}} {{}}\\n".format(*who).encode())
"""

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python")
MPIEXEC = {"mpich": ("mpiexec.mpich",), "openmpi": ("mpiexec.openmpi", "--allow-run-as-root", "--oversubscribe")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def without_starter() -> dict[str, str]:
    """The environment without what a starter of this very process may have set."""
    known = {name for variables in STARTERS.values() for name in variables}
    return {name: value for name, value in os.environ.items() if name not in known}


@pytest.mark.parametrize("package", ["torch_tp", "jax_tp"])
@pytest.mark.parametrize("starter", STARTERS)
def test_rank_is_read_from_what_the_starter_sets(starter, package):
    """Behind a proxy, which gRPC would ask for JAX's coordinator, on this node too: the ranks hung."""
    behind_proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "no_grpc_proxy": ""}  # nobody answers there
    clean = without_starter() | {"MASTER_PORT": str(free_port()), **behind_proxy}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(package=package)],
            env=clean | {name: value.format(rank=rank) for name, value in STARTERS[starter].items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [line.splitlines()[-1] for line in said] == ["0 2 0", "1 2 1"]


def mpiexec_of(starter: str) -> tuple[str, ...]:
    """The starter's own command, with what it takes to run as root on a machine of few cores; skips without it."""
    if shutil.which(MPIEXEC[starter][0]) is None:
        pytest.skip(f"{MPIEXEC[starter][0]} is not installed: apt-get install mpich openmpi-bin")
    return MPIEXEC[starter]


@pytest.mark.parametrize(
    ("starter", "package"),
    [("torchrun", "jax_tp"), ("mpich", "torch_tp"), ("openmpi", "jax_tp"), ("openmpi", "torch_tp")],
)
def test_real_starters_make_a_group(starter, package):
    """torchrun itself listens at the port that it names: JAX's coordinator has to take another one."""
    start = TORCHRUN if starter == "torchrun" else (*mpiexec_of(starter), "-n", "2")
    command = [*start, sys.executable, "-c", PROGRAM.format(package=package)]
    meeting = {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=without_starter() | meeting, capture_output=True, text=True, timeout=100, check=False
    )
    said = sorted(re.findall(r"^\d \d \d$", done.stdout, re.MULTILINE))
    assert (said, done.returncode) == (["0 2 0", "1 2 1"], 0), done.stderr[-2000:]
