"""Which heads fit which devices."""

import pytest

from torch_tp import attention, replicated_kv


@pytest.mark.parametrize(("heads", "kv_heads", "tp"), [(8, 8, 4), (8, 4, 4), (12, 3, 3), (6, 6, 1)])
def test_whole_heads_on_each_device_are_taken(heads, kv_heads, tp):
    attention.check_heads(heads, kv_heads, tp)


def test_heads_that_do_not_fit_are_refused_with_what_would_work():
    with pytest.raises(ValueError, match=r"tp=4 does not divide num_kv_heads=6: tp in \[1, 2, 3, 6\] would work$"):
        attention.check_heads(6, 6, 4)
    with pytest.raises(
        ValueError, match=r"num_kv_heads=2: tp in \[1, 2\] would work, or replicated_kv with kv=2,rep=2"
    ):
        attention.check_heads(8, 2, 4)
    with pytest.raises(ValueError, match=r"^y=4 does not divide num_kv_heads=2: y in \[1, 2\] would work$"):
        attention.check_heads(8, 2, 4, "y")
    with pytest.raises(ValueError, match="num_kv_heads=3 does not divide num_heads=8"):
        attention.check_heads(8, 3, 1)


def test_replicas_need_one_group_of_devices_for_each_head_of_keys():
    replicated_kv.check_heads(8, 2, 2, 2)
    replicated_kv.check_heads(8, 1, 1, 4)
    with pytest.raises(ValueError, match="kv=1, rep=4: with num_kv_heads=2, kv=2 would work"):
        replicated_kv.check_heads(8, 2, 1, 4)
    with pytest.raises(ValueError, match=r"num_heads=6: kv \* rep = 4 devices do not divide it"):
        replicated_kv.check_heads(6, 2, 2, 2)
