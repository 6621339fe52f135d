"""Data parallelism beside tensor parallelism: any layer or model on a mesh (dp | fsdp) x tp, or dp x (x, y).

    x_shard = x[its part of the batch]          y_shard = inner(x_shard)         dw = sum over the axis of inner's dw

    B batch   N elements of a parameter as the tp plan shards it: all of it, or its 1/tp   dp, fsdp, tp devices per axis

                           dp                                 fsdp
    x per device           [B/dp, ...]                        [B/fsdp, ...]
    parameter per device   as the tp plan has it: N           N/fsdp, cut along its output dim, within the tp shard
    forward                what inner sends for B/dp          the same for B/fsdp, and an all-gather of N per parameter
    backward               the same,                          the same, the all-gather again (the whole parameter is not
                           and an all-reduce of N             kept in between), and a reduce-scatter of N
                           per parameter

Tensor parallelism needs the fast links, so its axis is the last of the mesh, whose devices are neighbours.
Beside a grid (grid/) the batch is sharded over dp and then over x, x is [B/dp/X, ...] per device, and N is a device's
block of a parameter, 1/(X Y) or 1/Y of it.

A model's y is a mean over the labels that are not ignored. Their number differs between the parts of the batch, so y is
the weighted mean of the parts' means: two more all-reduces of a scalar. A part without such labels makes y NaN.

In the style `auto` layouts suffice: the batch of every activation is sharded over the axis, and parameters are used in
their tp layout. In `manual` everything is one `shard_map` over both axes: the transpose of using a replicated parameter
is the sum of its gradients, that of `all_gather` a reduce-scatter. XLA gathers again only what the backward pass reads:
no biases, and no tables whose rows are looked up.

In `typed`, tp is in the types but the data axis is not (`make_mesh` leaves it `Auto`); otherwise every `reshard` and
`out_sharding` of every layer would have to name it. The compiler propagates it as in `auto`.

Gradients of norms are float32 until they are rounded to bfloat16, and the compiler sums them over the axis before that:
2 N bytes more than in `manual`, where each device rounds its own first. No cast or barrier on the parameter moves the
sum. One copy of the parameter per part of the batch would, but rounds twice and so makes the gradients less accurate.

Sources: FSDP, https://arxiv.org/abs/2304.11277, and ZeRO, https://arxiv.org/abs/1910.02054;
https://docs.jax.dev/en/latest/notebooks/shard_map.html#fsdp-tp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.custom_derivatives import linear_call
from jax.lax import all_gather, axis_size, with_sharding_constraint
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_tp.collectives import copy_to_tp, map_shards, reduce_from_tp
from jax_tp.cross_entropy import IGNORED
from jax_tp.layouts import Plan, State, child, place
from jax_tp.mesh import DATA_AXES
from jax_tp.models.common import Loop

Path = tuple[Any, ...]  # path of a parameter in its module, e.g. ("blocks", 0, "norm1", "scale")


# Operations that take parameters as well as activations, and of parameters make others: in another layout, or those of
# several linears side by side (grid/linear.py).
ON_EITHER = ("concatenate", "pvary", "sharding_constraint")
# Operations whose results are views of their operand: saving the result would save the operand.
VIEWS = ("broadcast_in_dim", "convert_element_type", "linear_call", "reshape", "squeeze", "transpose")


def is_kept(primitive: Any, *operands: Any, **params: Any) -> bool:
    """Whether a result of the forward pass is saved for the backward pass: activations, not gathered parameters.

    Parameters come from all-gathers over fsdp and casts of these, from constraints, or from several put side by side;
    activations have over two dims.
    """
    if primitive.name == "all_gather":
        return "fsdp" not in params["axis_name"]
    if primitive.name == "reshard" and params["dst_sharding"].spec.reduced:
        return False  # recomputing it sends nothing, and jax 0.10 cannot save `reduced` values where some axes are Auto
    return primitive.name not in VIEWS and (primitive.name not in ON_EITHER or operands[0].ndim > 2)


def on_batch(plan: Plan, axis: str) -> Plan:
    """A layer's plan over tp as one over (axis, tp): the axis shards the first dim, the batch, of every activation."""

    def shared(spec: P) -> P:
        if not spec:
            return spec
        axes = (axis, spec[0]) if spec[0] else axis  # on a grid the batch is sharded already: dp goes outside
        return P(axes, *spec[1:])

    return replace(
        plan,
        x=shared(plan.x),
        y=shared(plan.y),
        inputs={name: shared(spec) for name, spec in plan.inputs.items()},
        children={name: on_batch(part, axis) for name, part in plan.children.items()},
    )


@dataclass(frozen=True)
class Hybrid:
    """A layer or model in one of its tp plans, with data parallelism; an entry of LAYERS like any layer."""

    layer: ModuleType
    plan: str
    is_mean: bool  # y is a mean over labels, without a batch dim

    @property
    def PLANS(self) -> dict[str, Plan]:  # noqa: N802  a layer's name for it
        inner = self.layer.PLANS[self.plan]
        inputs = {name: layout for name, layout in inner.inputs.items() if name != "step"}  # no dropout: see `build`
        inner = replace(inner, inputs=inputs)
        return {axis: replace(on_batch(inner, axis), params={}, children={"inner": inner}) for axis in DATA_AXES}

    def check_inputs(self, inputs: Mapping[str, np.ndarray], **options: Any) -> None:
        """As the layer does it."""
        if hasattr(self.layer, "check_inputs"):
            self.layer.check_inputs(inputs, **options)

    def build(self, mesh: Mesh, style: str, plan: Plan, state: State, **options: Any) -> nnx.Module:
        """The layer in the given style on tp or x and y, data-parallel over the other axis; `state`: that of "inner".

        Raises ValueError as the layer's `build` does, for a parameter that the axis does not divide, and for dropout.
        """
        if options.get("drop_rate"):
            raise ValueError("drop_rate: the masks would be the same for each part of the batch; 0 would work")
        axis = next(name for name in mesh.axis_names if name in DATA_AXES)
        inner_plan = on_batch(plan.children["inner"], axis) if style == "auto" else plan.children["inner"]
        inner = self.layer.build(mesh, style, inner_plan, child(state, "inner"), **options)
        return DATA_PARALLEL[style](mesh, axis, plan, inner, self.is_mean)


class DataParallel(nnx.Module):
    """The inner module for the own part of the batch; its parameters in shards, or the same everywhere."""

    def __init__(self, mesh: Mesh, axis: str, plan: Plan, inner: nnx.Module, is_mean: bool) -> None:
        self.axis, self.plan, self.is_mean = axis, plan, is_mean
        params = nnx.to_flat_state(nnx.state(inner, nnx.Param))
        self.tp_specs = specs_of(params)
        if axis == "fsdp":
            for path, param in params:
                param.set_value(shard(param.get_value(), mesh, path))
            nnx.update(inner, nnx.from_flat_state(params))
        self.specs = specs_of(params)
        for i, layer in enumerate(getattr(inner, "blocks", ())):
            if isinstance(layer, Loop):
                layer.gather = partial(self.gather_block, ("blocks", i, "block"))
                layer.policy = is_kept if axis == "fsdp" else None
        self.inner = inner

    def __call__(self, *inputs: jax.Array) -> jax.Array:
        graph, params = nnx.split(self.inner)
        paths, leaves = zip(*((path, param.get_value()) for path, param in nnx.to_flat_state(params)), strict=True)

        def forward(leaves: tuple[jax.Array, ...], *inputs: jax.Array) -> jax.Array:
            whole = [
                leaf if is_stacked(path) else self.gather(leaf, spec, tp_spec)
                for path, leaf, (_, spec), (_, tp_spec) in zip(paths, leaves, self.specs, self.tp_specs, strict=True)
            ]
            state = [(path, nnx.Param(leaf)) for path, leaf in zip(paths, whole, strict=True)]
            return self.combine(nnx.merge(graph, nnx.from_flat_state(state))(*inputs), inputs[-1])

        return self.map_parts(jax.checkpoint(forward, policy=is_kept) if self.axis == "fsdp" else forward)(
            leaves, *inputs
        )

    def gather_block(self, prefix: tuple[Any, ...], params: nnx.State) -> nnx.State:
        """The parameters of one block of a loop, gathered inside it just before use."""
        specs, tp_specs = dict(self.specs), dict(self.tp_specs)
        state = []
        for path, param in nnx.to_flat_state(params):
            spec, tp_spec = (P(*known[*prefix, *path][1:]) for known in (specs, tp_specs))  # without L
            state.append((path, nnx.Param(self.gather(param.get_value(), spec, tp_spec))))
        return nnx.from_flat_state(state)


class AutoDataParallel(DataParallel):
    """The compiler sees parameters that are sharded over the axis and used in layouts that are not."""

    def gather(self, leaf: jax.Array, spec: P, tp_spec: P) -> jax.Array:
        def whole(_: tuple[()], leaf: jax.Array) -> jax.Array:
            # First its stored layout, or the compiler would gather it at its source, once for all microbatches.
            return with_sharding_constraint(with_sharding_constraint(leaf, spec), tp_spec)

        def share(_: tuple[()], grad: jax.Array) -> jax.Array:
            return with_sharding_constraint(grad, spec)

        spec, tp_spec = self.seen(spec), self.seen(tp_spec)

        # The transpose of `whole` replicates the gradient before it is sharded. XLA turns that into a reduce-scatter,
        # but not across a conversion: a norm's gradient, float32 until rounded, would be all-reduced and then sliced.
        return linear_call(whole, share, (), leaf) if leaf.ndim == 1 else whole((), leaf)

    def seen(self, spec: P) -> P:
        """The part of a PartitionSpec that is left to the compiler."""
        return spec

    def combine(self, y: jax.Array, labels: jax.Array) -> jax.Array:
        return y  # already the mean over the whole batch

    def map_parts(self, forward: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return forward


class TypedDataParallel(AutoDataParallel):
    """The same for the data axis, which no type names; `with_sharding_constraint` leaves the types' axes alone."""

    def seen(self, spec: P) -> P:
        axes = [names if isinstance(names, tuple) else (names,) for names in spec]
        return P(*(self.axis if self.axis in names else None for names in axes))


class ManualDataParallel(DataParallel):
    """The per-device code of all axes, so that the inner layers' `map_shards` add nothing."""

    def gather(self, leaf: jax.Array, spec: P, tp_spec: P) -> jax.Array:
        if self.axis == "dp":
            return copy_to_tp(leaf, "dp")  # once, so that a parameter that is used twice has one gradient
        dim = next(dim for dim, names in enumerate(spec) if names == "fsdp" or "fsdp" in (names or ()))
        return all_gather(leaf, "fsdp", axis=dim, tiled=True)

    def combine(self, y: jax.Array, labels: jax.Array) -> jax.Array:
        """The mean over the whole batch from the mean of this device's part: [] -> []."""
        if not self.is_mean:
            return y
        if jnp.issubdtype(labels.dtype, jnp.floating):  # a field, all of whose elements count
            return reduce_from_tp(y / axis_size(self.axis), self.axis)
        count = (labels != IGNORED).sum(dtype=y.dtype)
        batch = self.plan.inputs["labels"][0]
        for name in batch if isinstance(batch, tuple) else ():
            if name != self.axis:  # the grid shards its part of the batch further
                count = reduce_from_tp(count, name)
        return reduce_from_tp(y * (count / reduce_from_tp(count, self.axis)), self.axis)

    def map_parts(self, forward: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        inputs = (self.plan.x, *self.plan.inputs.values())
        specs = tuple(spec for _, spec in self.specs)
        return map_shards(forward, in_specs=(specs, *inputs), out_specs=self.plan.y)


DATA_PARALLEL = {"auto": AutoDataParallel, "typed": TypedDataParallel, "manual": ManualDataParallel}


def whole_spec(param: jax.Array | jax.ShapeDtypeStruct) -> P:
    """The PartitionSpec of a parameter, with an entry for every dim."""
    spec = param.sharding.spec
    return P(*spec, *[None] * (param.ndim - len(spec)))


def specs_of(params: Sequence[tuple[Path, nnx.Param]]) -> tuple[tuple[Path, P], ...]:
    """The path and PartitionSpec of each parameter."""
    return tuple((path, whole_spec(param.get_value())) for path, param in params)


def is_stacked(path: Path) -> bool:
    """Whether this is a stacked parameter of all blocks of a loop, with a leading dim L."""
    return "block" in path


def shard(param: jax.Array | jax.ShapeDtypeStruct, mesh: Mesh, path: Path) -> jax.Array | jax.ShapeDtypeStruct:
    """Shard a parameter along its output dim over fsdp, within its tp shard, as `fully_shard` does."""
    dim = param.ndim - 1 if path[-1] == "kernel" else int(is_stacked(path))
    spec = whole_spec(param)
    names = (spec[dim], "fsdp") if spec[dim] else "fsdp"
    rows, size = param.shape[dim] // (mesh.shape[spec[dim]] if spec[dim] else 1), mesh.shape["fsdp"]
    if rows % size:
        name = ".".join(map(str, path))
        raise ValueError(f"fsdp={size} does not divide the {rows} outputs of {name} that a tp shard has")
    layout = P(*spec[:dim], names, *spec[dim + 1 :])
    if isinstance(param, jax.ShapeDtypeStruct):
        return place(param, mesh, layout)
    return jax.device_put(param, NamedSharding(mesh, layout))


def over(layer: ModuleType, plan: str, is_mean: bool = False) -> Hybrid:
    """The layer or model, in this tp plan, on a mesh (dp | fsdp) x tp. is_mean: whether y is the mean of a loss."""
    return Hybrid(layer, plan, is_mean)
