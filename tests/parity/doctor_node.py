"""A Derecho node that is not there: its variables, files, and what its commands say."""

from __future__ import annotations

import json

from packaging.utils import canonicalize_name

from parity.doctor import Place, examine
from parity.doctor.network import SLINGSHOT
from parity.doctor.software import read_requirements

# Of a Polaris node, 4 x A100-SXM4-40GB: docs of argonne-lcf/user-guides, "nvidia-smi topo -m" (without its legend).
TOPOLOGY = """\
\tGPU0\tGPU1\tGPU2\tGPU3\tmlx5_0\tmlx5_1\tCPU Affinity\tNUMA Affinity
GPU0\t X \tNV4\tNV4\tNV4\tSYS\tSYS\t24-31,56-63\t3
GPU1\tNV4\t X \tNV4\tNV4\tSYS\tPHB\t16-23,48-55\t2
GPU2\tNV4\tNV4\t X \tNV4\tSYS\tSYS\t8-15,40-47\t1
GPU3\tNV4\tNV4\tNV4\t X \tPHB\tSYS\t0-7,32-39\t0
mlx5_0\tSYS\tSYS\tSYS\tPHB\t X \tSYS\t\t
mlx5_1\tSYS\tPHB\tSYS\tSYS\tSYS\t X \t\t

Legend:

  X    = Self
"""
PCIE = TOPOLOGY.replace("NV4", "SYS")
PYTHONS = {"torch": "/torch/python", "jax": "/jax/python"}


class Node:
    """A healthy Derecho node in a PBS job of two, as rank 5 of 8 that PALS started; tests spoil it before they look."""

    def __init__(self, root):
        self.root = root
        self.env = {
            **SLINGSHOT,
            "PBS_JOBID": "1234.desched1",
            "PBS_NODEFILE": "/var/spool/pbs/aux/1234",
            "PMI_RANK": "5",
            "PMI_SIZE": "8",
            "PALS_LOCAL_RANKID": "1",
            "MASTER_ADDR": "deg0001.hsn.de.hpc.ucar.edu",
            "CUDA_VISIBLE_DEVICES": "0,1,2,3",
            "OMP_NUM_THREADS": "16",
            "NCCL_NET": "AWS Libfabric",
            "LD_LIBRARY_PATH": "/opt/cray/lib64:/opt/aws-ofi-nccl/lib",
        }
        pins = {canonicalize_name(one.name): one for one in read_requirements() if "tested" in str(one.marker)}
        versions = {name: str(one.specifier).removeprefix("==") for name, one in pins.items()}
        self.packages = {
            "python": "3.11.9",
            "versions": {**versions, "nvidia-cudnn-cu12": "9.10.2.21", "jax-cuda12-plugin": "0.10.2"},
            "requires": {
                "torch": ['nvidia-cudnn-cu12==9.10.2.21; platform_system == "Linux"'],
                "jax-cuda12-plugin": ['nvidia-cudnn-cu12<10.0,>=9.8; sys_platform == "linux" and extra == "with-cuda"'],
                "jax": ['jaxlib==0.10.1; extra == "minimum-jaxlib"'],  # of no concern
            },
            "shared": [],
        }
        facts = {"num_gpus": 4, "precision_in_workers": "highest", "rank": 5, "world": 8}
        self.facts = {
            "torch": {"version": "2.13.0+cu126", "cuda": "12.6", "precision_by_default": "highest", **facts},
            "jax": {"version": "0.10.2", "cuda": "12", "precision_by_default": None, **facts},
        }
        self.gpus, self.topology = ["NVIDIA A100-SXM4-40GB, 40960, 535.161.07"] * 4, TOPOLOGY
        self.taken: dict[int, str] = {}
        self.silent, self.last_words = set(), ""
        self.cores, self.shm_bytes = 64, 2**37
        self.write("proc/meminfo", "MemTotal: 527000000 kB\nMemAvailable: 500000000 kB\n")
        self.write("var/spool/pbs/aux/1234", "deg0001\ndeg0001\ndeg0002\ndeg0002\n")
        self.write("opt/aws-ofi-nccl/lib/libnccl-net.so", "")
        for number in range(4):
            self.write(f"sys/class/net/hsn{number}/type", "1")

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def run(self, command):
        match tuple(command):
            case ("nvidia-smi", "topo", "-m"):
                return self.topology
            case ("nvidia-smi", *_):
                return "".join(f"{gpu}\n" for gpu in self.gpus) or None
            case (_, "-m", module):
                told = self.facts[module.removesuffix("_tp.doctor")]
                return None if told is None else f"a line of a library\n{json.dumps(told)}\n{self.last_words}"
            case (python, "-c", _):
                return None if python in self.silent else f"a line of a library\n{json.dumps(self.packages)}\n"
        raise AssertionError(command)

    def findings(self):
        bind = lambda port: self.taken.get(port, "")  # noqa: E731
        return examine(Place(self.env, self.run, bind, self.cores, self.shm_bytes, self.root), PYTHONS)

    def complaints(self):
        return [(one.level, one.topic, one.what) for one in self.findings() if one.level != "ok"]
