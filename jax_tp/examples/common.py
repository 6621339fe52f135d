"""What the lessons share: find 4 devices, say something once, show shards and collectives, check against NumPy.

python -m jax_tp.examples.e01_basic                              one process with 4 (virtual) devices
torchrun --nproc-per-node 4 -m jax_tp.examples.e01_basic
mpiexec -n 4 python -m jax_tp.examples.e01_basic                 MPICH, Open MPI, PALS; --device cuda on 4 GPUs
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import NoReturn

import jax
import numpy as np
from flax import nnx
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from jax_tp.examples import without_driver_lines
from jax_tp.layouts import Plan, named_parameters, native_name, place
from jax_tp.mesh import RANK_VARIABLES, join, leave, read_rank
from jax_tp.trace import Call, declared_collectives
from jax_tp.train import Batch, Step, loss_and_gradients

NUM_DEVICES = 4
Show = Callable[[Sequence[Call]], None]
PASSES = ("forward", "backward", "optimizer")
TOLERANCE = 1e-12  # of the largest element: float64 has 1e-16, and sums here have less than a hundred terms


def run(lesson: Callable[[str], None]) -> None:
    """Call lesson(device) in each process of a group: the one that a starter made, else this one with all devices."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device = parser.parse_args().device
    jax.config.update("jax_enable_x64", True)
    is_group = read_rank(RANK_VARIABLES, -1) >= 0
    try:
        if is_group:
            keep_stdout_ours()
            join(device)
        else:
            use_all_devices(device)
    except RuntimeError as error:
        refuse(str(error))
    if jax.device_count() != NUM_DEVICES:
        refuse(f"the lessons are for {NUM_DEVICES} devices, there are {jax.device_count()}")
    lesson(device)
    if is_group:
        leave()


def keep_stdout_ours() -> None:
    """What C++ prints to stdout goes to stderr: Gloo, in every process, whom it is connected to."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(ours, "w", encoding="utf-8")


def refuse(line: str) -> NoReturn:
    """End with this line and exit code 2: what was asked for cannot be had."""
    print(line, file=sys.stderr)
    raise SystemExit(2)


def use_all_devices(device: str) -> None:
    """One process, all GPUs of this machine; or a CPU that passes for 4 devices, before JAX first looks at it."""
    jax.config.update("jax_platforms", device)
    if device == "cpu":
        jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
    try:
        # Not for GPUs: if that aborted the process, what was kept back would be lost, and with it the reason.
        with without_driver_lines() if device == "cpu" else nullcontext():
            jax.devices()
    except (RuntimeError, AssertionError):  # which of them depends on whether the plugin is installed
        raise RuntimeError(f"JAX {jax.__version__} finds no {device} device here: take --device cpu") from None


def say(*lines: str) -> None:
    """Print lines, once for all processes."""
    if jax.process_index() == 0:
        print(*lines, sep="\n", flush=True)


def normal(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Arrays with normally distributed elements, the same in every process and in both frameworks."""
    draw = np.random.default_rng(seed)
    return {name.replace("_", "."): draw.normal(size=shape) / 2 for name, shape in shapes.items()}


def by_name(names: Iterable[str], params: nnx.State) -> dict[str, jax.Array]:
    """Parameters or gradients by their canonical names."""
    native = named_parameters(params)
    return {name: native[native_name(name)].get_value() for name in names}


def show_shards(name: str, array: jax.Array, mesh: Mesh) -> None:
    """Which part of the global array each device holds, and the sum of its elements."""
    values, index = whole(array), array.sharding.devices_indices_map(array.shape)
    say(f"  {name} {list(array.shape)}")
    for rank, (where, device) in enumerate(np.ndenumerate(mesh.devices)):
        place_text = " ".join(f"{axis}={i}" for axis, i in zip(mesh.axis_names, where, strict=True))
        spans = [part.indices(size)[:2] for part, size in zip(index[device], array.shape, strict=True)]
        part_text = ", ".join(f"{start}:{stop}" for start, stop in spans)
        shape, total = [stop - start for start, stop in spans], np.ascontiguousarray(values[index[device]]).sum()
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


def batch_of(plan: Plan, mesh: Mesh, x: np.ndarray, target: np.ndarray) -> Batch:
    """Input and target as the plan lays them out."""
    return {"x": place(x, mesh, plan.x)}, place(target, mesh, plan.y)


def run_step(
    module: nnx.Module, mesh: Mesh, plan: Plan, x: np.ndarray, target: np.ndarray, show: Show = show_calls
) -> Step:
    """Forward and backward of ½ Σ (module(x) - target)²; shows what each device sends, but for the sum of the loss.

    A jaxpr declares the collectives inside `shard_map`; all others are the compiler's, that of the loss among them.
    """
    inputs, wanted = batch_of(plan, mesh, x, target)
    graph, params = nnx.split(module)

    @jax.jit
    def step(params: nnx.State, x: jax.Array, target: jax.Array) -> Step:
        return loss_and_gradients(nnx.merge(graph, params), {"x": x}, target)

    traced = step.trace(params, inputs["x"], wanted)
    show(declared_collectives(traced.jaxpr, mesh))
    return traced.lower().compile()(params, inputs["x"], wanted)


def whole(array: jax.Array) -> np.ndarray:
    """The global array in every process."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return process_allgather(array, tiled=True)


def check(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    """Say that all agree with the reference; where one does not, exit with a line that names it and code 1."""
    for name, reference in want.items():
        error, bound = np.abs(got[name] - reference).max(), TOLERANCE * np.abs(reference).max()
        if not error <= bound:  # a NaN is not
            sys.exit(f"{name} is off by {error:.3g} from the unsharded reference, {bound:.3g} is allowed")
    say(f"    {', '.join(want)}: as the unsharded reference has them")
