"""Which parameters an axis of data parallelism can cut."""

from types import SimpleNamespace

import pytest
import torch

from torch_tp import hybrid


def with_rows(num_rows):
    shard = SimpleNamespace(to_local=lambda: torch.zeros(num_rows, 3))
    return SimpleNamespace(named_parameters=lambda: [("up.weight", shard)])


def test_uneven_parts_are_refused_and_even_ones_and_replicas_taken():
    hybrid.check_divisible(with_rows(4), "fsdp", 2)
    hybrid.check_divisible(with_rows(3), "dp", 2)
    with pytest.raises(ValueError, match=r"fsdp=2 does not divide the 3 outputs of up\.weight that a tp shard has"):
        hybrid.check_divisible(with_rows(3), "fsdp", 2)


def test_dropout_is_refused_as_all_parts_of_the_batch_would_have_the_same_masks():
    inner = SimpleNamespace(build=None)
    with pytest.raises(
        ValueError, match=r"^drop_rate: the masks would be the same for each part of the batch; 0 would"
    ):
        hybrid.Hybrid(inner, "megatron", False).build(None, "manual", None, {}, drop_rate=0.1)
