"""What the lessons share: start 4 processes, say something once, show shards and collectives, check against NumPy.

python -m torch_tp.examples.e01_basic                            starts torchrun by itself
torchrun --nproc-per-node 4 -m torch_tp.examples.e01_basic
mpiexec -n 4 python -m torch_tp.examples.e01_basic               MPICH, Open MPI, PALS; --device cuda on 4 GPUs
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from torch_tp.layouts import Plan, canonical, describe, native_name, place
from torch_tp.mesh import RANK_VARIABLES, WORLD_VARIABLES, join, leave, read_rank
from torch_tp.trace import Call, RecordCollectives
from torch_tp.train import Batch, Step, loss_and_gradients

NUM_DEVICES = 4
Show = Callable[[Sequence[Call]], None]
PASSES = ("forward", "backward", "optimizer")
NUMBER_BYTES = 8  # float64
TOLERANCE = 1e-12  # of the largest element: float64 has 1e-16, and sums here have less than a hundred terms


def run(lesson: Callable[[str], None]) -> None:
    """Call lesson(device) in each process of a group: the one that a starter made, else one of our own."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device = parser.parse_args().device
    if read_rank(RANK_VARIABLES, -1) < 0:
        start_group(device)
    num_processes = read_rank(WORLD_VARIABLES, 1)
    if num_processes != NUM_DEVICES:
        refuse(f"the lessons are for {NUM_DEVICES} devices, there are {num_processes}")
    try:
        join(device)
    except RuntimeError as error:
        refuse(str(error))
    lesson(device)
    leave()


def refuse(line: str) -> NoReturn:
    """End with this line and exit code 2: what was asked for cannot be had."""
    print(line, file=sys.stderr)
    raise SystemExit(2)


def start_group(device: str) -> NoReturn:
    """Become `torchrun --nproc-per-node 4 -m` the module that was called."""
    if device == "cuda" and torch.cuda.device_count() < NUM_DEVICES:
        refuse(f"the lessons are for {NUM_DEVICES} devices, there are {torch.cuda.device_count()}: take --device cpu")
    module = sys.modules["__main__"].__spec__.name
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun would say at length that it sets it
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={NUM_DEVICES}"]
    os.execv(sys.executable, [*torchrun, "-m", module, *sys.argv[1:]])


def say(*lines: str) -> None:
    """Print lines, once for all processes."""
    if dist.get_rank() == 0:
        print(*lines, sep="\n", flush=True)


def normal(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Arrays with normally distributed elements, the same in every process and in both frameworks."""
    draw = np.random.default_rng(seed)
    return {name.replace("_", "."): draw.normal(size=shape) / 2 for name, shape in shapes.items()}


def by_name(names: Iterable[str], tensors: Mapping[str, DTensor]) -> dict[str, DTensor]:
    """Parameters or gradients, given by their path in the module, by their canonical names: weights are [in, out]."""
    return {name: canonical(name, tensors[native_name(name)]) for name in names}


def show_shards(name: str, tensor: DTensor, mesh: DeviceMesh) -> None:
    """Which part of the global tensor each device holds, and the sum of its elements."""
    values, index, _ = describe(tensor)
    held = (mesh.get_coordinate(), index, float(np.ascontiguousarray(values).sum()))
    parts = [held] * dist.get_world_size()
    dist.all_gather_object(parts, held)
    say(f"  {name} {list(tensor.shape)}")
    for rank, (where, spans, total) in enumerate(parts):
        place_text = " ".join(f"{axis}={i}" for axis, i in zip(mesh.mesh_dim_names or (), where, strict=True))
        part_text = ", ".join(f"{start}:{stop}" for start, stop in spans)
        shape = [stop - start for start, stop in spans]
        say(f"    device {rank} ({place_text})  holds [{part_text}], a shard {shape}, sum {total:.6f}")


def show_calls(calls: Sequence[Call]) -> None:
    """Collectives by pass, kind and axis: how many, and the bytes of their payload on a device."""
    if not calls:
        say("    no collective")
    calls_alike = Counter((call.pass_, call.axis, call.kind, call.payload_bytes) for call in calls)
    for pass_ in PASSES:
        for (own, axis, kind, size), count in sorted(calls_alike.items()):
            if own == pass_:
                say(f"    {pass_:8}  {count} x {kind:14} over {axis:4} {size:6,} bytes")


def show_bytes(calls: Sequence[Call]) -> None:
    """Collectives by pass, kind and axis: the bytes of their payloads on a device, in however many messages."""
    totals: Counter[tuple[str, str, str]] = Counter()
    for call in calls:
        totals[call.pass_, call.axis, call.kind] += call.payload_bytes
    for pass_ in PASSES:
        for (own, axis, kind), size in sorted(totals.items()):
            if own == pass_:
                say(f"    {pass_:8}  {kind:14} over {axis:4} {size:6,} bytes")


def batch_of(plan: Plan, mesh: DeviceMesh, x: np.ndarray, target: np.ndarray) -> Batch:
    """Input and target as the plan lays them out."""
    return {"x": place(x, mesh, plan.x)}, place(target, mesh, plan.y)


def run_step(
    module: nn.Module, mesh: DeviceMesh, plan: Plan, x: np.ndarray, target: np.ndarray, show: Show = show_calls
) -> Step:
    """Forward and backward of ½ Σ (module(x) - target)²; shows what each device sends, but for the sum of the loss."""
    inputs, wanted = batch_of(plan, mesh, x, target)
    with RecordCollectives(mesh) as record:
        step = loss_and_gradients(module, inputs, wanted)
    show([call for call in record.calls if call.payload_bytes > NUMBER_BYTES])
    return step


def whole(tensor: DTensor) -> np.ndarray:
    """The global tensor in every process, put together from the shards of all."""
    values, index, _ = describe(tensor)
    parts = [(index, values)] * dist.get_world_size()
    dist.all_gather_object(parts, (index, values))
    together = np.empty(tensor.shape, values.dtype)
    for spans, part in parts:
        together[tuple(slice(*span) for span in spans)] = part
    return together


def check(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    """Say that all agree with the reference; where one does not, exit with a line that names it and code 1."""
    for name, reference in want.items():
        error, bound = np.abs(got[name] - reference).max(), TOLERANCE * np.abs(reference).max()
        if not error <= bound:  # a NaN is not
            sys.exit(f"{name} is off by {error:.3g} from the unsharded reference, {bound:.3g} is allowed")
    say(f"    {', '.join(want)}: as the unsharded reference has them")
