"""Which parameters an axis of data parallelism can cut."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.testing._internal.distributed.fake_pg import FakeStore

from torch_tp import hybrid
from torch_tp.models import vit


def with_rows(num_rows):
    shard = SimpleNamespace(to_local=lambda: torch.zeros(num_rows, 3))
    return SimpleNamespace(named_parameters=lambda: [("up.weight", shard)])


def test_uneven_parts_are_refused_and_even_ones_and_replicas_taken():
    hybrid.check_divisible(with_rows(4), "fsdp", 2)
    hybrid.check_divisible(with_rows(3), "dp", 2)
    with pytest.raises(ValueError, match=r"fsdp=2 does not divide the 3 outputs of up\.weight that a tp shard has"):
        hybrid.check_divisible(with_rows(3), "fsdp", 2)


@pytest.fixture
def mesh():
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())  # whose all-reduce gives what it is given
    yield init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    dist.destroy_process_group()


def test_numbers_of_a_field_count_whatever_they_are_and_ignored_labels_do_not(mesh):
    def mean_of(inputs):
        part = SimpleNamespace(mesh=mesh, axis="dp")
        labels = DTensor.from_local(inputs, mesh["tp"], [Replicate()], run_check=False)
        return hybrid.DataParallel.mean_of_means(part, torch.tensor(3.0), labels)

    assert mean_of(torch.full((4,), -100.0)) == 3.0 / 2
    assert mean_of(torch.tensor([-100, 1, 2, -100])) == 3.0
    assert mean_of(torch.full((4,), -100)).isnan()  # no label has a mean


def test_the_truth_of_a_field_has_no_gradient_beside_data_parallelism_either():
    assert hybrid.over(vit, "field", is_mean=True).PLANS["fsdp"].constants == ("truth",)


def test_dropout_is_refused_as_all_parts_of_the_batch_would_have_the_same_masks():
    inner = SimpleNamespace(build=None)
    with pytest.raises(
        ValueError, match=r"^drop_rate: the masks would be the same for each part of the batch; 0 would"
    ):
        hybrid.Hybrid(inner, "megatron", False).build(None, "manual", None, {}, drop_rate=0.1)
