"""Cases or questions in, results or answers out: `python -m jax_tp.worker RUN ORDERS`, one process per device, or
one for several devices of a node.

RUN is the directory of the run, ORDERS a file with the ids of what to do. What comes out is in `parity.contract` and
`parity.question_contract`. With `--role trace` a single process compiles for A100s that are not there.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jax_tp.layouts import describe
from jax_tp.mesh import join, leave, make_mesh
from jax_tp.questions import answer
from jax_tp.tasks import MAKERS, PROGRAM, TASKS
from jax_tp.trace import QUICK_OPTIONS, a100_devices, declared_collectives, why_no_a100_compiler
from parity.contract import Case, Collective, Result, Shard, Timing, Trace
from parity.files_contract import EventLog, load_arrays, save_arrays
from parity.record import Record
from parity.worker_contract import Asked, file_name, read_asked, watch_launcher, work

# With these flags XLA's CPU compiler takes a fifth of the time on tiny programs, at the price of slower code.
QUICK_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

AXIS_TYPES = {"auto": AxisType.Auto, "typed": AxisType.Explicit, "manual": AxisType.Auto}


def environment(device: str) -> dict[str, Any]:
    """Everything that the results may depend on: versions, precision flags, threads, device."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "device": device_name(),
        "backend": backend_name(device),
        "num_processes": jax.process_count(),
        "num_devices": jax.device_count(),
        "num_threads": len(os.sched_getaffinity(0)),
        "default_matmul_precision": jax.config.jax_default_matmul_precision,
        "enable_x64": jax.config.jax_enable_x64,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def device_name() -> str:
    """The model name of the device."""
    return jax.local_devices()[0].device_kind


def backend_name(device: str) -> str:
    """The library that carries the collectives; between the CPU devices of one process, XLA itself."""
    if device == "cuda":
        return "nccl"
    return "xla" if jax.process_count() == 1 else str(jax.config.jax_cpu_collectives_implementation)


def run_case(case: Case, run: Path, device: str) -> list[Result]:
    """Run the case's task on the mesh and write the shards of this process's devices."""
    mesh = make_mesh(case.mesh, AXIS_TYPES[case.style])
    arrays = load_arrays(run / "inputs" / f"{case.inputs}.safetensors")
    is_new = case.program not in PROGRAM
    with jax.set_mesh(mesh):
        done = TASKS[case.task](case, mesh, arrays)
    cold_s = done.cold_s if is_new else None
    timing = Timing(cold_s, done.steady_s, done.repeats, device_name(), backend_name(device))
    results = []
    for rank, place in enumerate(mesh.devices.flat):
        if place in jax.local_devices():
            shards, file = write_shards(done.tensors, case, run, rank, place)
            hlo = write_hlo(PROGRAM[case.program], case, run, device) if rank == 0 and is_new else None
            results.append(Result(case.id, rank, coordinates(mesh, rank), shards, timing, file, hlo=hlo))
    return results


def trace_case(case: Case, run: Path) -> Trace:
    """Compile the step for A100s and list the collectives that its jaxpr declares; needs no device."""
    if skipped := why_no_a100_compiler():
        return Trace(case.id, None, (), skipped)
    arrays = load_arrays(run / "inputs" / f"{case.inputs}.safetensors")
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}
    mesh = make_mesh(case.mesh, AXIS_TYPES[case.style], a100_devices(case.num_devices))
    jitted, arguments, *_ = MAKERS[case.task](case, mesh, shapes)
    with jax.set_mesh(mesh):
        traced = jitted.trace(*arguments)
        hlo = write_hlo(traced.lower().compile(compiler_options=QUICK_OPTIONS), case, run, "a100")
    calls = declared_collectives(traced.jaxpr, mesh)
    declared = tuple(Collective(call.kind, call.axis, call.dtype, call.payload_bytes, 1, call.pass_) for call in calls)
    return Trace(case.id, hlo, declared)


def coordinates(mesh: Mesh, rank: int) -> dict[str, int]:
    """The mesh coordinates of this rank's device."""
    where = np.unravel_index(rank, mesh.devices.shape)
    return dict(zip(mesh.axis_names, map(int, where), strict=True))


def write_shards(
    tensors: dict[str, jax.Array], case: Case, run: Path, rank: int, place: jax.Device
) -> tuple[dict[str, Shard], str]:
    """Write the values that a rank's device holds; returns where each lies in the whole, and the name of the file."""
    shards: dict[str, Shard] = {}
    values: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        values[name], index, partial = describe(tensor, place)
        shards[name] = Shard(tuple(tensor.shape), tuple(index), values[name].dtype.name, tuple(partial))
    file = file_name(case.id, f"rank{rank}.safetensors")
    save_arrays(run / "jax" / "arrays" / file, values)
    return shards, file


def write_hlo(compiled: Any, case: Case, run: Path, target: str) -> str:
    """Write the scheduled HLO of a compiled step; returns the name of the file."""
    file = file_name(case.id, f"{target}.hlo")
    path = run / "jax" / "hlo" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(compiled.as_text())
    return file


def set_precision() -> None:
    """IEEE float32 products on A100s too, where JAX would take TF32."""
    jax.config.update("jax_default_matmul_precision", "highest")


def do(asked: Asked, run: Path, rank: int, device: str, is_alone: bool) -> Trace | Sequence[Record]:
    """The results or the trace of a case, or the answer to a question."""
    if not isinstance(asked, Case):
        return [answer(asked, rank, device)]
    return trace_case(asked, run) if is_alone else run_case(asked, run, device)


def parse_arguments() -> argparse.Namespace:
    """The launcher's command line."""
    parser = argparse.ArgumentParser(prog="jax_tp.worker", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("orders", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--local-devices", type=int, default=1, help="that this process drives")
    parser.add_argument("--quick", action="store_true", help="compile in less time programs that take more: no timings")
    parser.add_argument("--role", choices=["ranks", "trace"], default="ranks")
    return parser.parse_args()


def main() -> int:
    """Join the group, run the orders, leave."""
    arguments = parse_arguments()
    run, device, is_alone = arguments.run, arguments.device, arguments.role == "trace"
    watch_launcher()
    jax.config.update("jax_enable_x64", True)
    set_precision()
    if arguments.quick:
        os.environ["XLA_FLAGS"] = f"{QUICK_FLAGS} {os.environ.get('XLA_FLAGS', '')}"  # the user's flags win
    if is_alone:
        jax.config.update("jax_platforms", "cpu")
    rank = 0 if is_alone else join(device, arguments.local_devices)[0]
    log = EventLog(run / "jax" / ("trace.jsonl" if is_alone else f"rank{rank}.jsonl"))
    asked = read_asked(run, arguments.orders)
    if is_alone and any(isinstance(one, Case) for one in asked.values()):
        os.nice(10)  # it may run beside the ranks
    work(log, environment(device), asked, lambda one: do(one, run, rank, device, is_alone))
    if not is_alone:
        leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
