"""Cases in, results out: `python -m torch_tp.worker RUN ORDERS`, one process a device.

RUN is the directory of the run, ORDERS a file with the ids of the cases to do. What comes out is in `parity.contract`.
With `--role measure` the ids name collectives to time, KIND/RANKS/BYTES.
With `--role steps` a single process traces whole steps, the orders in RUN/steps.json, for GPUs that are not there.
With `--role questions` a single process answers questions about devices that are not there.
With `--role bench` the ids are of questions too, of products to time on the devices that are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from parity.contract import Case, Collective, Measured, Result, Shard, Timing
from parity.files_contract import EventLog, load_arrays, save_arrays
from parity.question_contract import read_questions
from parity.step_contract import read_orders
from parity.worker_contract import file_name, read_cases, watch_launcher
from torch_tp.grid.bench import bench
from torch_tp.layouts import describe
from torch_tp.measure import measure
from torch_tp.mesh import join, leave, make_mesh
from torch_tp.questions import answer_all
from torch_tp.steps import trace_step
from torch_tp.tasks import TASKS


def environment(device: str) -> dict[str, Any]:
    """What the numbers depend on: versions, precision flags, threads, device."""
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
    """What the devices call themselves."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def run_case(case: Case, run: Path, rank: int, device: str) -> Result:
    """Do the case's task on the devices of the mesh, write the shards of this rank."""
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


def measure_collective(case_id: str, rank: int, device: str) -> Measured:
    """Time the collective that `case_id` (KIND/RANKS/BYTES) names, over all ranks."""
    kind, _, payload_bytes = case_id.split("/")
    return Measured(case_id, rank, tuple(measure(kind, int(payload_bytes), device)))


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
    """IEEE float32 products on A100s too, where JAX would take TF32."""
    torch.set_float32_matmul_precision("highest")


def main() -> int:
    """Join the group, do the cases in order, leave. A case that raises ends the process: the group is out of step."""
    parser = argparse.ArgumentParser(prog="torch_tp.worker", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("orders", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--role", choices=["ranks", "measure", "steps", "questions", "bench"], default="ranks")
    parser.add_argument("--num-pairs", type=int, default=7, help="with --role bench: runs of each of the two")
    arguments = parser.parse_args()
    watch_launcher()
    set_precision()
    role = arguments.role
    ids = json.loads(arguments.orders.read_text())["case_ids"]
    if role == "questions":
        answer_all(arguments.run, ids, {"python": platform.python_version(), "torch": torch.__version__})
        return 0
    rank = 0 if role == "steps" else join(arguments.device)[0]
    cases = read_cases(arguments.run) if role == "ranks" else {}
    orders = read_orders(arguments.run) if role == "steps" else {}
    questions = read_questions(arguments.run) if role == "bench" else {}
    log = EventLog(arguments.run / "torch" / ("steps.jsonl" if role == "steps" else f"rank{rank}.jsonl"))
    log.append("hello", environment=environment(arguments.device))
    for case_id in ids:
        log.append("start", case=case_id)
        try:
            if role == "steps":
                log.append("step", step=trace_step(orders[case_id]).to_json())
            elif role == "bench":
                times = bench(questions[case_id], rank, arguments.device, arguments.num_pairs)
                log.append("result", results=[times.to_json()])
            elif role == "measure":
                log.append("result", results=[measure_collective(case_id, rank, arguments.device).to_json()])
            else:
                result = run_case(cases[case_id], arguments.run, rank, arguments.device)
                log.append("result", results=[result.to_json()])
        except Exception as error:
            traceback.print_exc()
            log.append("error", case=case_id, message=f"{type(error).__name__}: {error}".splitlines()[0])
            sys.stderr.flush()
            os._exit(1)  # leaving in order would wait for peers that wait for us
    if role != "steps":
        leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
