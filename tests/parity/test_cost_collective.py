"""The cost model against its own formulas, and against what must hold on any machine."""

import dataclasses
import itertools
import math

import pytest

from parity.cost import KINDS, CostError, Group, collective_time, list_machines, load_machine, total, wire_factor
from parity.cost.collective import curve_time, ring_time, tree_time
from parity.cost.machine import Band, Curve, Ring, Tree

MIB = 2**20


@pytest.fixture
def plain():
    """Perlmutter's parts with round figures, so that a time can be worked out by hand."""
    return dataclasses.replace(
        load_machine("perlmutter"),
        curves=(
            Curve("all_gather", 2, (1000.0, 2000.0, 4000.0), (10.0, 10.0, 30.0), "hand"),
            Curve("all_gather", 4, (1000.0, 2000.0), (20.0, 20.0), "hand"),
        ),
        rings=(Ring(1, 1.0, 25e9, 100.0, (4.0, 16.0), (4.0, 6.0), (1.0, 3.0), "hand"),),
        trees=(Tree(1, 1.0, 25e9, 7.0, 50.0, (16.0, 64.0), (2.0, 4.0), 8.0, "hand"),),
        bands=(Band("node", 0.0, 0.5, 2.0), Band("nodes", 0.0, 0.9, 1.2), Band("nodes", 1000.0, 0.8, 1.1)),
        unseen_spread=0.0,
    )


@pytest.mark.parametrize(("payload", "seconds"), [(10, 10.0), (1500, 10.0), (3000, 20.0), (8000, 70.0)])
def test_curve_is_flat_then_straight_then_goes_on(plain, payload, seconds):
    assert curve_time(plain.curves[0], payload) == pytest.approx(seconds, rel=1e-12)


def test_ring_matches_its_formula(plain):
    # n = 4, s = 8: start and hop are halfway between the knots in log2; a step is 3 messages at 100 bytes/s and 3 hops.
    seconds = ring_time(plain.rings[0], plain, 32, Group(4, 4), 2)
    assert seconds == pytest.approx(5 + 2 * (3 * 8 / 100 + 3 * 2.0), rel=1e-12)


def test_tree_matches_its_formula(plain):
    seconds = tree_time(plain.trees[0], plain, 32, Group(4, 4))
    assert seconds == pytest.approx(7 + 2 * 3 / 4 * 32 / 50 + 2 * 3.0, rel=1e-12)


def test_all_reduce_goes_by_tree_below_the_switch_and_by_ring_from_it(plain):
    assert collective_time(plain, "all_reduce", 31, Group(4, 4)).basis == "tree over nodes"
    assert collective_time(plain, "all_reduce", 32, Group(4, 4)).basis == "ring over nodes"


def test_groups_that_share_nics_get_their_part_of_the_bandwidth(plain):
    two_nics = dataclasses.replace(plain, nics_per_node=2)
    alone = ring_time(plain.rings[0], two_nics, 32, Group(4, 4, 1), 1)
    beside_one = ring_time(plain.rings[0], two_nics, 32, Group(4, 4, 2), 1)
    beside_three = ring_time(plain.rings[0], two_nics, 32, Group(4, 4, 4), 1)
    assert alone == beside_one  # a NIC each
    assert beside_three - alone == pytest.approx(3 * 8 / 100, rel=1e-12)  # half a NIC: the bytes take twice as long


def test_interval_takes_the_band_of_the_size_and_widens_with_what_was_not_measured(plain):
    small = collective_time(plain, "all_gather", 999, Group(4, 4))
    large = collective_time(plain, "all_gather", 1000, Group(4, 4))
    assert (small.low_s / small.seconds, small.high_s / small.seconds) == pytest.approx((0.9, 1.2))
    assert (large.low_s / large.seconds, large.high_s / large.seconds) == pytest.approx((0.8, 1.1))
    shared = collective_time(plain, "all_gather", 1000, Group(4, 4, 4))
    unseen = collective_time(dataclasses.replace(plain, unseen_spread=0.1), "all_gather", 1000, Group(4, 4))
    for wider in (shared, unseen):
        assert wider.high_s / wider.seconds > 1.1
        assert wider.low_s / wider.seconds < 0.8
    assert unseen.high_s / unseen.seconds == pytest.approx(math.exp(math.hypot(math.log(1.1), 0.1645)))


def test_sum_of_estimates_keeps_its_ends(plain):
    one = collective_time(plain, "all_gather", 1000, Group(4, 4))
    both = total([(one, 3), (one, 1)], "four")
    assert (both.seconds, both.low_s, both.high_s) == (4 * one.seconds, 4 * one.low_s, 4 * one.high_s)


@pytest.mark.parametrize("name", list_machines())
@pytest.mark.parametrize("kind", KINDS)
def test_any_collective_on_any_group_has_a_time_inside_its_interval(name, kind):
    machine = load_machine(name)
    groups = [Group(n) for n in (2, 3, 4, 8) if n <= machine.gpus_per_node]
    if machine.rings:
        groups += [Group(8, 8, 4), Group(2, 2), Group(6, 3), Group(12, 3), Group(16, 4), Group(64 * 4, 64)]
    for group in groups:
        for payload in (1, 4096, MIB, 64 * MIB, 2**35):
            estimate = collective_time(machine, kind, payload, group)
            assert estimate.predicted
            assert 0 < estimate.low_s < estimate.seconds < estimate.high_s
        # However it was derived, no link is faster than on paper.
        floor_s = 2**35 * wire_factor(kind, group.gpus) / machine.nvlink_bytes_per_s
        assert estimate.seconds > floor_s


# To so much of itself may a time fall while the payload or the group grows: what was measured falls a little where NCCL
# changes protocol or algorithm, and an estimate more where it leaves the tree for the ring.
DIPS = {"derecho": 0.97, "polaris": 0.97, "dgx-a100-80": 0.92}
GROUPS = [Group(2), Group(3), Group(4), Group(2, 2), Group(8, 8, 4), Group(8, 2), Group(64, 16)]


@pytest.mark.parametrize("name", DIPS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "group", [Group(2), Group(3), Group(4), Group(2, 2), Group(8, 8, 4), Group(8, 2), Group(64, 16)]
)
def test_more_bytes_take_longer(name, kind, group):
    machine = load_machine(name)
    times = [collective_time(machine, kind, 2.0 ** (power / 2), group).seconds for power in range(20, 72)]
    assert all(b > DIPS[name] * a for a, b in itertools.pairwise(times))
    assert times[-1] > 1.9 * times[-3]  # of the largest, twice as many take about twice as long
    assert times[-1] < 2.1 * times[-3]


@pytest.mark.parametrize("name", DIPS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "permute"])
def test_more_nodes_take_longer_and_shared_nics_too(name, kind):
    machine = load_machine(name)
    for payload in (2**12, 2**16, MIB, 64 * MIB, 2**32):
        for per_node in (1, 2, 4):
            sizes = [Group(per_node * nodes, nodes) for nodes in (2, 4, 8, 16, 32, 64)]
            times = [collective_time(machine, kind, payload, group).seconds for group in sizes]
            assert all(b > DIPS[name] * a for a, b in itertools.pairwise(times)), (payload, per_node)
    alone, beside = (collective_time(machine, kind, 2**30, Group(16, 16, share)).seconds for share in (1, 4))
    # 4 groups a node: 4 of Derecho's NICs are one each, 2 of Polaris's are half a one each.
    assert beside / alone == pytest.approx(2.0 if name == "polaris" else 1.0, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_no_network_is_faster_than_on_paper(kind):
    for name in ("derecho", "polaris", "dgx-a100-40"):
        machine = load_machine(name)
        for group in (Group(2, 2), Group(16, 16, 4), Group(8, 2), Group(256, 64)):
            busbw = wire_factor(kind, group.gpus) * 2**34 / collective_time(machine, kind, 2**34, group).seconds
            nics = min(1 if kind == "permute" else group.gpus_per_node, machine.nics_per_node / group.sharing)
            # Of an all_to_all only what is for other nodes crosses, of every GPU of the node.
            crossing = group.gpus_per_node * (group.gpus - group.gpus_per_node) / (group.gpus - 1)
            limit = nics * machine.nic_bytes_per_s / (crossing if kind == "all_to_all" else 1)
            assert 0.3 * limit < busbw < limit, (name, group)


def test_out_of_place_all_gather_is_slower_than_in_place():
    machine = load_machine("perlmutter")
    out = collective_time(machine, "all_gather", 256 * MIB, Group(2)).seconds
    assert out > 1.1 * collective_time(machine, "all_gather", 256 * MIB, Group(2), in_place=True).seconds


def test_one_process_of_many_gpus_cannot_beat_its_launches():
    machine = load_machine("dgx-a100-40")
    single = collective_time(machine, "all_reduce", 1024, Group(8), gpus_per_process=8)
    assert single.seconds == 8 * machine.launch_s
    assert collective_time(machine, "all_reduce", 1024, Group(8)).seconds < single.seconds


def test_a_group_of_one_costs_nothing():
    assert collective_time(load_machine("derecho"), "all_reduce", MIB, Group(1)).seconds == 0


@pytest.mark.parametrize(
    ("group", "kind", "says"),
    [
        (Group(8), "all_reduce", "derecho has 4"),
        (Group(83, 83), "all_reduce", "derecho has 82"),
        (Group(8, 4, 3), "all_reduce", "3 groups of 2 GPUs a node"),
        (Group(4), "gossip", "'gossip': not one of"),
    ],
)
def test_what_the_machine_cannot_hold_is_said(group, kind, says):
    with pytest.raises(CostError, match=says):
        collective_time(load_machine("derecho"), kind, MIB, group)


def test_a_machine_without_a_network_says_so():
    with pytest.raises(CostError, match="local has 1"):
        collective_time(load_machine("local"), "all_reduce", MIB, Group(4, 2))


@pytest.mark.parametrize(
    ("mesh", "axis", "group"),
    [
        ({"fsdp": 64, "tp": 4}, "tp", Group(4, 1, 1)),
        ({"fsdp": 64, "tp": 4}, "fsdp", Group(64, 64, 4)),
        ({"fsdp": 64, "tp": 4}, "fsdp+tp", Group(256, 64, 1)),
        ({"fsdp": 8, "tp": 2}, "fsdp", Group(8, 4, 2)),
        ({"fsdp": 2, "tp": 8}, "tp", Group(8, 2, 1)),
        ({"dp": 2, "x": 2, "y": 2}, "x", Group(2, 1, 1)),
        ({"dp": 2, "x": 2, "y": 2}, "dp+y", Group(4, 2, 2)),
        ({"fsdp": 2, "tp": 1}, "fsdp", Group(2, 1, 1)),
    ],
)
def test_group_of_an_axis(mesh, axis, group):
    assert Group.of_axis(mesh, axis, 4) == group


@pytest.mark.parametrize(("mesh", "axis"), [({"dp": 2, "tp": 3}, "tp"), ({"dp": 2, "tp": 6}, "tp"), ({"tp": 4}, "x")])
def test_uneven_or_unknown_axes_are_said(mesh, axis):
    with pytest.raises(CostError, match=f"axis '{axis}'"):
        Group.of_axis(mesh, axis, 4)
