"""Cases or questions in, results or answers out: `python -m torch_tp.worker RUN ORDERS`, one process per device.

RUN is the directory of the run, ORDERS a file with the ids of what to do. What comes out is in `parity.contract` and
`parity.question_contract`. With `--role trace` a single process answers for devices that are not there.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from parity.contract import Case, Collective, Result, Shard, Timing
from parity.files_contract import EventLog, load_arrays, save_arrays
from parity.record import Record
from parity.worker_contract import Asked, file_name, read_asked, watch_launcher, work
from torch_tp.layouts import describe
from torch_tp.mesh import join, leave, make_mesh
from torch_tp.questions import answer
from torch_tp.tasks import TASKS


def environment(device: str) -> dict[str, Any]:
    """Everything that the results may depend on: versions, precision flags, threads, device."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(device),
        "backend": dist.get_backend() if dist.is_initialized() else "",
        "num_processes": dist.get_world_size() if dist.is_initialized() else 1,
        "num_threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if device == "cuda" else None,
    }


def device_name(device: str) -> str:
    """The model name of the device."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def run_case(case: Case, run: Path, rank: int, device: str) -> Result:
    """Run the case's task on the mesh and write this rank's shards."""
    mesh = make_mesh(case.mesh, device)
    arrays = load_arrays(run / "inputs" / f"{case.inputs}.safetensors")
    done = TASKS[case.task](case, mesh, arrays, device)
    shards, file = write_shards(done.tensors, case, run, rank)
    return Result(
        case=case.id,
        rank=rank,
        coordinates=dict(zip(case.mesh, mesh.get_coordinate(), strict=True)),
        shards=shards,
        timing=Timing(done.cold_s, done.steady_s, done.repeats, device_name(device), dist.get_backend()),
        arrays=file,
        collectives=tuple(
            Collective(call.kind, call.axis, call.dtype, call.payload_bytes, pass_=call.pass_) for call in done.calls
        ),
    )


def write_shards(tensors: dict[str, DTensor], case: Case, run: Path, rank: int) -> tuple[dict[str, Shard], str]:
    """Write the values that this rank holds; returns where each lies in the whole, and the name of the file."""
    shards: dict[str, Shard] = {}
    values: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        values[name], index, partial = describe(tensor)
        shards[name] = Shard(tuple(tensor.shape), tuple(index), values[name].dtype.name, tuple(partial))
    file = file_name(case.id, f"rank{rank}.safetensors")
    save_arrays(run / "torch" / "arrays" / file, values)
    return shards, file


def set_precision() -> None:
    """IEEE float32 products on A100s: PyTorch's default, unless TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 asks for TF32."""
    torch.set_float32_matmul_precision("highest")


def do(asked: Asked, run: Path, rank: int, device: str) -> list[Record]:
    """The result of a case, or the answer to a question."""
    return [run_case(asked, run, rank, device) if isinstance(asked, Case) else answer(asked, rank, device)]


def parse_arguments() -> argparse.Namespace:
    """The launcher's command line."""
    parser = argparse.ArgumentParser(prog="torch_tp.worker", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("orders", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--role", choices=["ranks", "trace"], default="ranks")
    return parser.parse_args()


def main() -> int:
    """Join the group, run the orders, leave."""
    arguments = parse_arguments()
    run, device, is_alone = arguments.run, arguments.device, arguments.role == "trace"
    watch_launcher()
    set_precision()
    rank = 0 if is_alone else join(device)[0]
    log = EventLog(run / "torch" / ("trace.jsonl" if is_alone else f"rank{rank}.jsonl"))
    asked = read_asked(run, arguments.orders)
    work(log, environment(device), asked, lambda one: do(one, run, rank, device))
    if not is_alone:
        leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
