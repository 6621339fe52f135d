"""Which parameters an axis of data parallelism can cut, and what of a forward pass is kept."""

from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_tp import hybrid
from jax_tp.layouts import Plan
from jax_tp.mesh import make_mesh

MESH = AbstractMesh((2, 2), ("fsdp", "tp"))


def kernel(num_columns):
    return jax.ShapeDtypeStruct((5, num_columns), jnp.float32, sharding=NamedSharding(MESH, P(None, "tp")))


def test_uneven_parts_are_refused_and_even_ones_lie_within_the_tp_shard():
    assert hybrid.shard(kernel(8), MESH, ("up", "kernel")).sharding.spec == P(None, ("tp", "fsdp"))
    with pytest.raises(ValueError, match=r"fsdp=2 does not divide the 3 outputs of up\.kernel that a tp shard has"):
        hybrid.shard(kernel(6), MESH, ("up", "kernel"))


def test_parameters_of_a_loop_are_cut_as_those_of_a_block_and_never_along_the_blocks():
    path = ("blocks", 0, "block", "norm1", "scale")
    scales = jax.ShapeDtypeStruct((4, 6), jnp.float32, sharding=NamedSharding(MESH, P(None, None)))
    assert hybrid.shard(scales, MESH, path).sharding.spec == P(None, "fsdp")


def test_whole_parameters_are_not_kept_and_activations_are():
    def kept(name, ndim, **params):
        return hybrid.is_kept(SimpleNamespace(name=name), SimpleNamespace(ndim=ndim), **params)

    assert not kept("all_gather", 2, axis_name=("fsdp",))
    assert not kept("sharding_constraint", 2)
    assert not kept("transpose", 2)
    assert not kept("pvary", 1)
    assert not kept("concatenate", 2)
    assert not kept("linear_call", 1)
    assert not kept("reshard", 3, dst_sharding=SimpleNamespace(spec=P(None, reduced={"tp"})))
    assert kept("reshard", 3, dst_sharding=SimpleNamespace(spec=P(None, "tp")))
    assert kept("pvary", 3)
    assert kept("all_gather", 3, axis_name=("tp",))
    assert kept("sharding_constraint", 3)
    assert kept("dot_general", 3)


def test_dropout_is_refused_as_all_parts_of_the_batch_would_have_the_same_masks():
    inner = SimpleNamespace(build=None)
    with pytest.raises(
        ValueError, match=r"^drop_rate: the masks would be the same for each part of the batch; 0 would"
    ):
        hybrid.Hybrid(inner, "megatron", False).build(None, "manual", None, {}, drop_rate=0.1)


def test_an_axis_of_data_parallelism_is_in_no_type():
    devices = np.zeros((2, 2), dtype=object)  # names of axes and their types are all that is asked for
    with patch("jax_tp.mesh.Mesh", lambda devices, names, axis_types: dict(zip(names, axis_types, strict=True))):
        types = make_mesh({"fsdp": 2, "tp": 2}, AxisType.Explicit, devices)
    assert types == {"fsdp": AxisType.Auto, "tp": AxisType.Explicit}
    typed = hybrid.TypedDataParallel.seen(SimpleNamespace(axis="fsdp"), P(None, ("tp", "fsdp"), "tp"))
    assert typed == P(None, "fsdp", None)


def mean_of(inputs):
    """What a part whose own mean is 3 makes of it, where it is the only one."""
    mesh = jax.make_mesh((1, 1), ("dp", "tp"), axis_types=(AxisType.Auto,) * 2)
    part = SimpleNamespace(is_mean=True, axis="dp", plan=Plan(x=P("dp"), y=P(), inputs={"labels": P("dp")}))
    combine = partial(hybrid.ManualDataParallel.combine, part)
    with jax.set_mesh(mesh):
        return jax.jit(jax.shard_map(combine, in_specs=(P(), P("dp")), out_specs=P()))(jnp.array(3.0), inputs)


def test_numbers_of_a_field_count_whatever_they_are_and_ignored_labels_do_not():
    assert mean_of(jnp.full(4, -100.0)) == 3.0
    assert mean_of(jnp.array([-100, 1, 2, -100])) == 3.0
    assert np.isnan(mean_of(jnp.full(4, -100)))  # no label has a mean
