"""Placing arrays: a dim that the mesh does not divide is refused, where DTensor would make uneven shards."""

import numpy as np
import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from torch_tp.layouts import place, to_tensor
from torch_tp.optimizer import global_norm
from torch_tp.trace import RecordCollectives


@pytest.fixture
def mesh():
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield init_device_mesh("cpu", (4,), mesh_dim_names=("tp",))
    dist.destroy_process_group()


@pytest.fixture
def two_axes():
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    mesh._flatten("fsdp+tp")
    yield mesh
    dist.destroy_process_group()


def test_a_sequence_that_tp_does_not_divide_is_refused(mesh) -> None:
    with pytest.raises(ValueError, match=r"tp=4 does not divide dim 1 of \[2, 5, 3\]; 4 or 8 would work"):
        place(np.zeros((2, 5, 3)), mesh, Shard(1))
    with pytest.raises(ValueError, match=r"tp=4 does not divide dim 2 of \[2, 5, 3\]; 4 would work"):
        place(np.zeros((2, 5, 3)), mesh, Shard(2))
    assert place(np.zeros((2, 8, 3)), mesh, Shard(1)).to_local().shape == (2, 2, 3)
    assert place(np.zeros((2, 5, 3)), mesh, Replicate()).to_local().shape == (2, 5, 3)


def test_a_dim_that_two_axes_cut_is_refused_where_their_product_does_not_divide_it(two_axes) -> None:
    within = (_StridedShard(0, split_factor=2), Shard(0))  # as `fully_shard` cuts within a tp shard
    with pytest.raises(ValueError, match=r"fsdpxtp=4 does not divide dim 0 of \[6, 3\]; 4 or 8 would work"):
        place(np.zeros((6, 3)), two_axes, within)
    assert place(np.zeros((8, 3)), two_axes, within).to_local().shape == (2, 3)


def test_the_norm_sends_a_scalar_over_just_the_axes_that_shard_a_gradient(two_axes) -> None:
    grads = [
        place(np.ones((8, 4)), two_axes, layout)
        for layout in (
            (_StridedShard(0, split_factor=2), Shard(0)),
            (Replicate(), Shard(0)),
            (Shard(1), Shard(0)),
            (Replicate(), Replicate()),
        )
    ]
    with RecordCollectives(two_axes) as record:
        global_norm(grads)
    assert [(call.axis, call.payload_bytes // 8) for call in record.calls] == [("fsdp+tp", 2), ("tp", 1)]


def test_distribute_tensor_itself_would_have_taken_it(mesh) -> None:
    uneven = distribute_tensor(to_tensor(np.zeros((2, 5, 3)), "cpu"), mesh, [Shard(1)], src_data_rank=None)
    assert uneven.to_local().shape == (2, 2, 3)
