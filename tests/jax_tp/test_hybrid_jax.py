"""Which parameters an axis of data parallelism can cut, and what of a forward pass is kept."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_tp import block, hybrid

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


def test_typed_is_refused_with_what_would_work():
    layer = hybrid.over(block, "megatron")
    with pytest.raises(ValueError, match=r"^style 'typed' beside data parallelism: auto or manual would work$"):
        layer.build(MESH, "typed", layer.PLANS["fsdp"], {})
