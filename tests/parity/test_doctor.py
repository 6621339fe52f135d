"""`parity doctor` on a Derecho node that is not there: healthy it has nothing to say, and each fault is named alone."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from doctor_node import PCIE, PYTHONS, TOPOLOGY, Node

from parity.doctor import Place, examine
from parity.doctor.gpus import read_links
from parity.doctor.network import num_nodes


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def set_env(**variables):
    def spoil(node):
        node.env.update(variables)

    return spoil


def unset(*names):
    def spoil(node):
        for name in names:
            del node.env[name]

    return spoil


def set_fact(framework, **told):
    def spoil(node):
        node.facts[framework].update(told)

    return spoil


def set_version(**versions):
    def spoil(node):
        node.packages["versions"].update({name.replace("_", "-"): version for name, version in versions.items()})

    return spoil


def put(**attributes):
    def spoil(node):
        vars(node).update(attributes)

    return spoil


def without_plugin(node):
    (node.root / "opt/aws-ofi-nccl/lib/libnccl-net.so").unlink()


def one_node_without_plugin(node):
    without_plugin(node)
    node.write("var/spool/pbs/aux/1234", "deg0001\ndeg0001\n")


def worker_that_does_not_start(node):
    node.facts["jax"] = None


def worker_that_prints_something_else(node):
    run = node.run
    node.run = lambda command: "[1]\n2\nx\n" if command[-1] == "jax_tp.doctor" else run(command)


def other_launcher(node):
    for name in ("PMI_RANK", "PMI_SIZE"):
        del node.env[name]
    node.env["PALS_RANKID"] = "5"


def package_missing(node):
    del node.packages["versions"]["optax"]


def little_memory(node):
    node.write("proc/meminfo", "MemAvailable: 2000000 kB\n")


HOST = "deg0001.hsn.de.hpc.ucar.edu"
# What spoils the node -> all that is said then: (level, topic, in the line).
FAULTS = {
    "package is missing": (package_missing, [("problem", "packages", "jax: optax is not installed")]),
    "package is old": (set_version(jax="0.9.0"), [("problem", "packages", "jax: jax is 0.9.0, the project takes >=")]),
    "package is newer": (set_version(jax="0.11.0"), [("note", "packages", "jax 0.11.0 (==0.10.2)")]),
    "old of all sides": (
        set_version(numpy="1.26.4"),
        [("problem", "packages", f"{side}: numpy is 1.26.4") for side in ("parity", "torch", "jax")],
    ),
    "packages are not told": (
        put(silent={PYTHONS["jax"]}),
        [("problem", "packages", "jax: unknown, the interpreter failed or took over")],
    ),
    "packages are told to nobody": (
        put(silent={sys.executable, *PYTHONS.values()}),
        [("problem", "packages", f"{side}: unknown") for side in ("parity", "torch", "jax")],
    ),
    "worker prints something else": (
        worker_that_prints_something_else,
        [("problem", "workers", "jax: the worker does not start")],
    ),
    "no worker": (worker_that_does_not_start, [("problem", "workers", "jax: the worker does not start")]),
    "cuDNN of the other": (
        set_version(nvidia_cudnn_cu12="9.11.0"),
        [("problem", "CUDA wheels", "torch 2.13.0 needs nvidia-cudnn-cu12==9.10.2.21, installed is 9.11.0")],
    ),
    "cuDNN too old": (
        set_version(nvidia_cudnn_cu12="9.7.0"),
        [
            ("problem", "CUDA wheels", "torch 2.13.0 needs"),
            ("problem", "CUDA wheels", "jax-cuda12-plugin 0.10.2 needs nvidia-cudnn-cu12<10.0,>=9.8"),
        ],
    ),
    "worker in TF32": (set_fact("jax", precision_in_workers=None), [("problem", "precision", "None in workers")]),
    "TF32 by variable": (
        set_env(TORCH_ALLOW_TF32_CUBLAS_OVERRIDE="1"),
        [("note", "precision", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE set")],
    ),
    "too many threads": (set_env(OMP_NUM_THREADS="64"), [("warning", "cores", "64 cores, OMP_NUM_THREADS=64")]),
    "little memory": (little_memory, [("warning", "memory", "1.9 GiB available")]),
    "little shared memory": (put(shm_bytes=2**26), [("warning", "memory", "/dev/shm has 0.062 GiB")]),
    "build for CPUs": (
        set_fact("torch", cuda=None, num_gpus=0),
        [("problem", "GPUs", "torch 2.13.0+cu126 is built for CPUs only")],
    ),
    "driver too old": (
        set_fact("torch", cuda="13.0"),
        [("problem", "GPUs", "built for CUDA 13.0, which needs driver 580; this one is 535.161.07")],
    ),
    "GPUs masked": (
        lambda node: (set_env(CUDA_VISIBLE_DEVICES="0,1")(node), set_fact("torch", num_gpus=2)(node)),
        [("note", "GPUs", "sees 2 of 4, CUDA_VISIBLE_DEVICES=0,1")],
    ),
    "GPUs not seen": (
        lambda node: (unset("CUDA_VISIBLE_DEVICES")(node), set_fact("jax", num_gpus=0)(node)),
        [("problem", "GPUs", "jax 0.10.2 (CUDA 12) sees 0 of 4")],
    ),
    "GPUs on PCIe": (
        put(topology=PCIE),
        [("warning", "NVLink", "without NVLink: GPU0-GPU1 SYS"), ("note", "machine file", "none of derecho")],
    ),
    "one GPU less": (
        lambda node: (put(gpus=node.gpus[:3])(node), [set_fact(name, num_gpus=3)(node) for name in PYTHONS]),
        [("note", "machine file", "none of derecho")],
    ),
    "rank not read": (
        set_fact("torch", rank=0, world=1),
        [("problem", "launcher", "rank 5 of 8; torch_tp/mesh.py reads another")],
    ),
    "two launchers": (
        lambda node: (
            set_env(RANK="0", WORLD_SIZE="4", LOCAL_RANK="1")(node),
            [set_fact(name, rank=0, world=4)(node) for name in PYTHONS],
        ),
        [("problem", "launcher", "takes the first: torchrun: rank 0 of 4; PALS or MPICH: rank 5 of 8")],
    ),
    "unknown launcher": (other_launcher, [("problem", "launcher", "PALS_RANKID is set")]),
    "no local rank": (unset("PALS_LOCAL_RANKID"), [("warning", "launcher", "none of PALS_LOCAL_RANKID")]),
    "device hidden": (
        lambda node: (
            set_env(CUDA_VISIBLE_DEVICES="1")(node),
            [set_fact(name, num_gpus=1)(node) for name in PYTHONS],
        ),
        [
            ("note", "GPUs", "sees 1 of 4"),
            ("note", "GPUs", "sees 1 of 4"),
            ("problem", "launcher", "local rank 1 takes device 1, and CUDA_VISIBLE_DEVICES=1 hides it"),
        ],
    ),
    "no meeting point": (unset("MASTER_ADDR"), [("problem", "meeting point", "2 nodes, MASTER_ADDR=not set")]),
    "no loopback": (put(taken={0: "Operation not permitted"}), [("problem", "ports", "no port of 127.0.0.1")]),
    "port taken": (put(taken={29500: "Address already in use"}), [("warning", "ports", "port 29500: Address already")]),
    "proxy": (set_env(http_proxy="http://proxy:3128"), [("note", "proxy", f"http_proxy is set, {HOST} not excepted")]),
    "no plugin": (without_plugin, [("problem", "Slingshot", "silently takes TCP")]),
    "no plugin on one node": (one_node_without_plugin, [("warning", "Slingshot", "silently takes TCP")]),
    "plugin of another name": (set_env(NCCL_NET_PLUGIN="ofi"), [("problem", "Slingshot", "silently takes TCP")]),
    "plugin not forced": (unset("NCCL_NET"), [("warning", "Slingshot", "NCCL_NET=not set")]),
    "other provider": (set_env(FI_PROVIDER="tcp;ofi_rxm"), [("warning", "Slingshot", "FI_PROVIDER=tcp;ofi_rxm")]),
    "variables not set": (
        unset("FI_CXI_DISABLE_HOST_REGISTER", "NCCL_CROSS_NIC"),
        [("warning", "Slingshot", "4 of 6 variables")],
    ),
}


def test_healthy_node_is_told_so(node):
    assert node.complaints() == []
    told = "\n".join(one.what for one in node.findings())
    assert "4 x NVIDIA A100-SXM4-40GB of 40960 MiB, driver 535.161.07" in told
    assert "NV4 for every pair" in told
    assert "as in derecho, perlmutter" in told  # and not polaris, which has two NICs
    assert "PALS or MPICH: rank 5 of 8; mesh.py of both sides reads it" in told
    assert "jax: float32 products are None (TF32 on A100s) by default, highest in workers" in told


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named_and_nothing_else(node, fault):
    spoil, expected = FAULTS[fault]
    spoil(node)
    found = node.complaints()
    assert [(level, topic) for level, topic, _ in found] == [(level, topic) for level, topic, _ in expected]
    assert all(line in what for (*_, what), (*_, line) in zip(found, expected, strict=True)), found
    assert all(one.do for one in node.findings() if one.level in ("warning", "problem"))


@pytest.mark.parametrize(
    "mend",
    [
        set_env(http_proxy="http://proxy:3128", no_proxy="localhost,.ucar.edu"),
        set_env(FI_PROVIDER="cxi"),
        set_env(NCCL_NET_PLUGIN="/opt/aws-ofi-nccl/lib/libnccl-net.so"),
        lambda node: (unset("NCCL_NET")(node), node.write("etc/nccl.conf", "NCCL_NET = AWS Libfabric\n")),
        lambda node: (without_plugin(node), [file.rename(file.with_name("en0")) for file in nics(node)]),
        lambda node: (set_env(NCCL_NET_PLUGIN="ofi")(node), node.write("usr/lib64/libnccl-net-ofi.so", "")),
        set_env(MASTER_PORT="not a port", SLURM_JOB_NUM_NODES=""),
        put(last_words="a last line of a library\n"),
    ],
)
def test_other_healthy_nodes_are_not_blamed(node, mend):
    mend(node)
    assert node.complaints() == []


def nics(node):
    found = sorted((node.root / "sys/class/net").iterdir())
    for file in found[1:]:
        (file / "type").unlink()
        file.rmdir()
    return found[:1]


def test_libraries_that_two_packages_claim_are_named_once(node):
    node.packages["shared"] = [["nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia/cudnn/lib/libcudnn.so.9"]]
    what = "nvidia-cudnn-cu12 and nvidia-cudnn-cu13 overwrite each other's nvidia/cudnn/lib/libcudnn.so.9"
    assert node.complaints() == [("problem", "CUDA wheels", what)]


def test_laptop_without_gpus_has_notes_only(node):
    node.env.clear()
    node.gpus, node.topology, node.shm_bytes = [], None, 2**26
    for told in node.facts.values():
        told.update(rank=0, world=1, num_gpus=0, cuda=None)
    for name in ("jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12", "scikit-learn"):
        del node.packages["versions"][name]
    for file in nics(node):
        file.rename(file.with_name("en0"))
    assert [(level, topic) for level, topic, _ in node.complaints()] == [
        ("note", "packages"),
        ("note", "packages"),
        ("note", "GPUs"),
    ]


def test_links_of_a_node_are_read():
    links = read_links(TOPOLOGY)
    assert set(links) == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    assert set(links.values()) == {"NV4"}
    assert read_links(TOPOLOGY.replace("GPU1\tNV4\t X \tNV4", "GPU1\tNV4\t X \tPHB"))[1, 2] == "PHB"
    assert read_links("command not found") == {}


def test_nodes_are_counted(node):
    place = Place(node.env, node.run, lambda port: "", 1, 0, node.root)
    assert num_nodes(place) == 2
    assert num_nodes(replace(place, env={"SLURM_JOB_NUM_NODES": "3"})) == 3
    assert num_nodes(replace(place, env={"PBS_NODEFILE": "/nowhere"})) == 1


def test_interpreters_are_asked_once_each(node):
    asked = []
    place = Place(
        node.env, lambda command: asked.append(tuple(command)) or node.run(command), lambda port: "", 64, 2**37
    )
    examine(place, dict.fromkeys(PYTHONS, sys.executable))
    assert sum(command[1] == "-c" for command in asked) == 1
