"""A machine as data: what `parity/machines/*.toml` and `parity calibrate` hold, read and checked."""

from __future__ import annotations

from dataclasses import dataclass

from parity.cost.group import CostError


class MachineError(CostError):
    """A machine file that is missing, unreadable, or holds a figure that cannot be; one line for the user."""


@dataclass(frozen=True)
class Gpu:
    """One GPU. Peaks are dense, by dtype name: float64, float32, tf32, bfloat16."""

    name: str
    memory_bytes: float
    hbm_bytes_per_s: float
    num_sms: int
    peak_flops_per_s: dict[str, float]
    gemm_efficiency: float  # of the peak, largest sizes
    hbm_efficiency: float  # of hbm_bytes_per_s, large streaming kernels
    kernel_start_s: float  # start of one more kernel in a stream
    source: str


@dataclass(frozen=True)
class Curve:
    """Time of one collective inside a node: straight between knots: latency + bytes / bandwidth on each piece.

    A protocol switch of NCCL is a steep piece between two neighbouring knots.
    """

    kind: str
    gpus: int
    payload_bytes: tuple[float, ...]
    time_s: tuple[float, ...]
    source: str
    in_place: bool | None = None  # None: the same in and out of place


@dataclass(frozen=True)
class Ring:
    """A ring over nodes: start(s) + steps * ((gpus - 1) * s / bytes_per_s + (nodes - 1) * hop(s)), s = payload / gpus.

    steps is 1 for all_gather and reduce_scatter, 2 for all_reduce. start and hop are straight in log2(s) between the
    knots message_bytes and flat outside: both grow where NCCL leaves its protocols of low latency.
    """

    gpus_per_node: int
    num_nics: float  # that the group had when it was measured
    nic_bytes_per_s: float  # of such a NIC, on paper
    bytes_per_s: float
    message_bytes: tuple[float, ...]
    start_s: tuple[float, ...]
    hop_s: tuple[float, ...]
    source: str


@dataclass(frozen=True)
class Tree:
    """An all_reduce over a tree of nodes: start + 2 S (n - 1)/n / bytes_per_s + log2(nodes) * level(S).

    Taken while payload / gpus is below `max_message_bytes`; the ring from there on.
    """

    gpus_per_node: int
    num_nics: float
    nic_bytes_per_s: float
    start_s: float
    bytes_per_s: float
    payload_bytes: tuple[float, ...]
    level_s: tuple[float, ...]
    max_message_bytes: float
    source: str


@dataclass(frozen=True)
class Band:
    """90 % of measured / predicted lies in [low, high], from `min_bytes` to the next band of that scope."""

    scope: str  # "node" or "nodes"
    min_bytes: float
    low: float
    high: float


@dataclass(frozen=True)
class Machine:
    """A machine: its parts on paper and what was fitted to measurements of it or of a machine like it."""

    name: str
    description: str
    source: str
    gpus_per_node: int
    nics_per_node: int
    max_nodes: int
    topology: str  # "mesh": the links of a GPU are split over its peers; "switch": all serve any peer
    nvlink_bytes_per_s: float  # of one GPU, one way, on paper
    nic_bytes_per_s: float  # of one NIC, one way, on paper
    launch_s: float  # host time to launch one collective kernel: what one process that drives n GPUs pays n times
    unseen_spread: float  # standard deviation of log(time) to add to each interval, for a machine fitted on another
    gpu: Gpu
    curves: tuple[Curve, ...]
    rings: tuple[Ring, ...]
    trees: tuple[Tree, ...]
    bands: tuple[Band, ...]
