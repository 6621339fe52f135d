"""Which collectives a step issues: as its jaxpr declares them, and as XLA compiles them for A100s.

The second needs the CUDA plugin of the same version as jax and ptxas (the extra `a100`), but no GPU and no driver.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Without a GPU the tiles of Triton GEMMs cannot be tuned, and the default tiles do not fit every shape: XLA then fails
# to compile. The collectives do not depend on the GEMM kernels. The machine code is never run, so ptxas need not
# optimise it; the HLO stays the same.
A100_OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_disable_gpuasm_optimizations": True}
# For when only the collectives are wanted: they are fixed before the kernels, on which these options save time.
QUICK_OPTIONS = A100_OPTIONS | {
    "xla_disable_hlo_passes": "triton-softmax-rewriter",
    "xla_backend_optimization_level": 0,
}
GPUS_PER_NODE = 4  # Derecho, Perlmutter, Polaris


@dataclass(frozen=True)
class Call:
    """One collective, as declared."""

    kind: str
    axis: str
    dtype: str
    payload_bytes: int
    pass_: str  # "forward", "backward" or "optimizer"


# The array whose size is the payload (S of nccl-tests): the whole buffer, the gathered output, the whole input.
COLLECTIVES = {
    "psum": ("all_reduce", "invars"),
    "psum_invariant": ("all_reduce", "invars"),
    "pmax": ("all_reduce", "invars"),
    "all_gather": ("all_gather", "outvars"),
    "all_gather_invariant": ("all_gather", "outvars"),
    "reduce_scatter": ("reduce_scatter", "invars"),
    "all_to_all": ("all_to_all", "invars"),
    "ppermute": ("permute", "invars"),
    "pbroadcast": ("broadcast", "invars"),
}


def declared_collectives(closed: ClosedJaxpr, mesh: Mesh) -> list[Call]:
    """The collectives of a jaxpr, in program order: those inside `shard_map`. Other styles leave them to the compiler.

    Those inside a `scan` count once per iteration, those inside a `while_loop`, whose trip count is unknown, once.
    """
    calls = []
    for equation, stack, trips in _equations(closed.jaxpr, "", 1):
        if equation.primitive.name not in COLLECTIVES:
            continue
        kind, side = COLLECTIVES[equation.primitive.name]
        names = equation.params.get("axes", equation.params.get("axis_name"))
        axes = [axis for axis in ([names] if isinstance(names, str) else names) if mesh.shape[axis] > 1]
        if kind == "permute":
            axes = _crossed(axes, mesh, equation.params["perm"])
        if not axes:
            continue  # nothing leaves the device
        for array in getattr(equation, side):
            call = Call(
                kind=kind,
                axis="+".join(axes),
                dtype=array.aval.dtype.name,
                payload_bytes=array.aval.size * array.aval.dtype.itemsize,
                pass_=_pass(stack),
            )
            calls += [call] * trips
    return calls


def _crossed(axes: Sequence[str], mesh: Mesh, pairs: Sequence[tuple[int, int]]) -> list[str]:
    """The axes along which a permute over `axes` sends any message; positions are row-major in the order of `axes`."""
    sizes = tuple(mesh.shape[axis] for axis in axes)
    sources, targets = (np.array(np.unravel_index(ends, sizes)) for ends in zip(*pairs, strict=True))
    return [axis for axis, differs in zip(axes, (sources != targets).any(axis=1), strict=True) if differs]


def _pass(stack: str) -> str:
    if "optimizer" in stack.split("/"):
        return "optimizer"
    return "backward" if "transpose(" in stack else "forward"


def _equations(jaxpr: Jaxpr, outer: str, trips: int) -> Iterator[tuple[JaxprEqn, str, int]]:
    """All equations, including nested ones, each with its enclosing names and transformations and its trip count."""
    for equation in jaxpr.eqns:
        stack = f"{outer}/{equation.source_info.name_stack}"
        yield equation, stack, trips
        params = dict(equation.params)
        platforms = params.pop("branches_platforms", None)
        if platforms is not None:  # `lax.platform_dependent`: the branch that CUDA takes, or the default
            names = [names or ("cuda",) for names in platforms]
            params["branches"] = params["branches"][next(i for i, own in enumerate(names) if "cuda" in own)]
        for value in jax.tree.leaves(params, is_leaf=lambda v: isinstance(v, (Jaxpr, ClosedJaxpr))):
            if isinstance(value, (Jaxpr, ClosedJaxpr)):
                length = equation.params["length"] if equation.primitive.name == "scan" else 1
                yield from _equations(getattr(value, "jaxpr", value), stack, trips * length)


@functools.cache
def why_no_a100_compiler() -> str | None:
    """Why programs cannot be compiled for A100s here, in one line, or None if they can; found out by trying."""
    hint = "install the extra: pip install 'tp-parity[a100]'"
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        return f"the CUDA plugin of jax {jax.__version__} is not installed; {hint}"
    sharding = NamedSharding(Mesh(np.array(a100_devices(1)), ("one",)), PartitionSpec())
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding)
    try:
        jax.jit(lambda x: x @ x).lower(x).compile()
    except jax.errors.JaxRuntimeError as error:
        if "PTX" not in str(error) and "libdevice" not in str(error):
            raise
        return f"ptxas was not found (package nvidia-cuda-nvcc-cu12); {hint}"
    return None


def a100_devices(num_devices: int, gpus_per_node: int = GPUS_PER_NODE) -> list[Any]:
    """Compile-only A100s on nodes of four, or of the most below four that divides num_devices (9: three nodes of 3).

    Source: https://docs.jax.dev/en/latest/aot.html; the topology is "processes x nodes x GPUs" as XLA:GPU reads it.
    """
    per_node = next(size for size in range(gpus_per_node, 0, -1) if num_devices % size == 0)
    topology = topologies.get_topology_desc(
        "",
        "cuda",
        topology=f"1x{num_devices // per_node}x{per_node}",
        target_config=files("jax_tp").joinpath("a100_40gb.txtpb").read_text(),
    )
    return list(topology.devices)
