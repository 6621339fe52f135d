"""The time of a step against its own formulas, and against what must hold on any machine."""

from dataclasses import replace

import pytest
from closed_step import LLAMA_8B, llama_step, matmul

from parity.cost import CostError, Estimate, Group, collective_time, load_machine, matmul_time
from parity.cost.memory import RESERVED_BYTES, fit_of
from parity.cost.step import (
    BESIDE_PARTS,
    HOST_BOUND_BELOW_S,
    LOST_BESIDE,
    _pipelined,
    check_gpus,
    check_mesh,
    link_of,
    step_cost,
)
from parity.step_contract import Operation, StepTrace, TracedCollective

DERECHO = load_machine("derecho")
MESH = {"fsdp": 2, "tp": 4}
MIB = 2**20


def trace(*entries, operations=()):
    return StepTrace("torch", "r", tuple(entries), tuple(operations))


def entry(kind="all_gather", axis="fsdp", payload=64 * MIB, count=8, is_async=True, pass_="forward"):
    return TracedCollective(kind, axis, "bfloat16", payload, count, pass_, is_async=is_async)


LONG = matmul("forward", 8192, 8192, 8192, 1000, "long")
SHORT = matmul("forward", 128, 128, 128, 1, "short")


@pytest.mark.parametrize("mesh", [MESH, {"fsdp": 64, "tp": 4}, {"tp": 8}, {"fsdp": 8}, {"tp": 1}])
def test_parts_add_up_to_the_step_and_stay_in_order(mesh):
    cost = step_cost(DERECHO, mesh, llama_step(mesh=mesh, batch=64))
    for end in ("seconds", "low_s", "high_s"):
        assert getattr(cost.step, end) == pytest.approx(sum(getattr(part.time, end) for part in cost.parts))
    for one in [cost.step, *(part.time for part in cost.parts), *(one.time for one in cost.collectives)]:
        assert one.predicted
        assert 0 <= one.low_s <= one.seconds <= one.high_s


def test_awaited_collectives_add_their_whole_time():
    one = collective_time(DERECHO, "all_reduce", MIB, Group(4))
    cost = step_cost(DERECHO, MESH, trace(entry("all_reduce", "tp", MIB, 7, False), operations=[LONG]))
    work = 1000 * matmul_time(DERECHO, 8192, 8192, 8192, "bfloat16").seconds
    assert cost.step.seconds == pytest.approx((1 + BESIDE_PARTS[0]) * (7 * one.seconds + work), rel=1e-12)


def test_a_pipeline_shows_its_first_piece_and_what_is_longer_than_the_work():
    sure = Estimate(8.0, 8.0, 8.0, "x")
    shown, hidden = _pipelined(sure, Estimate(6.0, 6.0, 6.0, "x"), 4)
    # 4 pieces of 2.0 beside 4 of 1.5: the first shows whole, of each of the other three 0.5.
    assert (shown.seconds, hidden) == (2.0 + 3 * 0.5, 4.5)
    shown, hidden = _pipelined(sure, Estimate(100.0, 100.0, 100.0, "x"), 4)
    assert (shown.seconds, hidden) == (2.0, 6.0)
    assert _pipelined(sure, Estimate(100.0, 100.0, 100.0, "x"), 1)[0].seconds == 8.0


def test_collectives_hide_behind_long_work_and_not_behind_short():
    whole = 8 * collective_time(DERECHO, "all_gather", 64 * MIB, Group(2, 2, 4)).seconds
    for work, part_name, seconds in ((LONG, "fsdp collectives, exposed", whole / 8), (SHORT, None, None)):
        cost = step_cost(DERECHO, MESH, trace(entry(), operations=[work]))
        exposed = cost.of("fsdp collectives, exposed").seconds
        if part_name:
            assert exposed == pytest.approx(seconds, rel=1e-12)
            (slowed,) = [part for part in cost.parts if part.name == "work slowed by overlap"]
            assert slowed.time.seconds == pytest.approx(LOST_BESIDE[0] * whole * 7 / 8, rel=1e-12)
        else:
            assert exposed > 0.99 * whole
    # Negative control: the same collectives awaited where they are issued.
    awaited = step_cost(DERECHO, MESH, trace(entry(is_async=False), operations=[LONG]))
    overlapped = step_cost(DERECHO, MESH, trace(entry(), operations=[LONG]))
    assert awaited.step.seconds > overlapped.step.seconds + 0.7 * whole


@pytest.mark.parametrize("size", [64, 2048, 16384])
def test_a_schedule_hides_each_call_behind_its_own_work_only(size):
    beside = (matmul("forward", size, size, size, 3, "beside"),)
    scheduled = replace(entry(), beside=beside)
    call = collective_time(DERECHO, "all_gather", 64 * MIB, Group(2, 2, 4)).seconds
    work = 3 * matmul_time(DERECHO, size, size, size, "bfloat16").seconds
    shown, hidden = 8 * max(0.0, call - work), 8 * min(call, work)
    cost = step_cost(DERECHO, MESH, trace(scheduled, operations=[LONG]))
    assert cost.of("fsdp collectives, exposed").seconds == pytest.approx(shown, rel=1e-12, abs=1e-15)
    assert cost.of("work slowed by overlap").seconds == pytest.approx(LOST_BESIDE[0] * hidden, rel=1e-12)
    # Control: with nothing scheduled beside it, the pass's long work hides nothing, as it does where streams run free.
    empty = step_cost(DERECHO, MESH, trace(replace(scheduled, beside=()), operations=[LONG]))
    assert empty.of("fsdp collectives, exposed").seconds == pytest.approx(8 * call, rel=1e-12)
    free = step_cost(DERECHO, MESH, trace(entry(), operations=[LONG]))
    assert free.of("fsdp collectives, exposed").seconds == pytest.approx(call, rel=1e-12)


def test_awaited_collectives_hide_others_on_another_link_only():
    awaited = entry("all_reduce", "tp", 256 * MIB, 100, False)
    across = step_cost(DERECHO, MESH, trace(entry(), awaited))  # fsdp on the network, tp on NVLink
    inside = step_cost(DERECHO, {"fsdp": 2, "tp": 2}, trace(entry(), awaited))  # both on NVLink
    assert across.of("fsdp collectives, exposed").seconds < 0.2 * across.collectives[0].time.seconds
    assert inside.of("fsdp collectives, exposed").seconds == pytest.approx(inside.collectives[0].time.seconds)


def test_work_of_another_pass_hides_nothing():
    cost = step_cost(DERECHO, MESH, trace(entry(pass_="backward"), operations=[LONG]))
    assert cost.of("fsdp collectives, exposed").seconds == pytest.approx(cost.collectives[0].time.seconds)


@pytest.mark.parametrize(
    ("group", "link"), [(Group(4), "nvlink"), (Group(8, 8, 4), "network"), (Group(8, 2), "both"), (Group(1), "nvlink")]
)
def test_link_of_a_group(group, link):
    assert link_of(group) == link


def test_wire_bytes_count_every_call():
    cost = step_cost(DERECHO, MESH, trace(entry("all_reduce", "tp", 1000, 3, False)))
    assert cost.collectives[0].wire_bytes == 3 * 1000 * 2 * 3 / 4


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        ({"fsdp": 128, "tp": 4}, "mesh fsdp=128,tp=4 has 512 GPUs: derecho has 328 (82 nodes of 4)"),
        (
            {"fsdp": 2, "tp": 3},
            "mesh fsdp=2,tp=3: groups of tp=3 lie unevenly on nodes of 4 GPUs (derecho); tp=2 or tp=4 would work",
        ),
        (
            {"fsdp": 3, "tp": 2},
            "mesh fsdp=3,tp=2: groups of fsdp=3 lie unevenly on nodes of 4 GPUs (derecho); fsdp=2 or fsdp=4 would work",
        ),
        ({"fsdp": 82, "tp": 3}, "; tp=2 or tp=4 would work"),
        ({"fsdp": 83, "tp": 3}, "; the axes together must fill whole nodes"),  # derecho has no GPUs for tp=4
        ({"fsdp": 0, "tp": 4}, "axis 'fsdp' must be of size 1 or more"),
    ],
)
def test_a_mesh_that_the_machine_cannot_hold_is_said(mesh, says):
    with pytest.raises(CostError) as caught:
        check_mesh(DERECHO, mesh)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gpus", "says"),
    [
        (7, "7 GPUs do not fill nodes of 4 GPUs (derecho); 4 or 8 would work"),
        (327, "327 GPUs do not fill nodes of 4 GPUs (derecho); 324 or 328 would work"),
        (329, "asked for 329 GPUs: derecho has 328 (82 nodes of 4)"),
    ],
)
def test_a_number_of_gpus_that_the_machine_cannot_give_is_said(gpus, says):
    with pytest.raises(CostError) as caught:
        check_gpus(DERECHO, gpus)
    assert str(caught.value) == says


def test_what_is_said_to_work_works():
    for gpus in (1, 3, 4, 8, 324, 328):
        check_gpus(DERECHO, gpus)
    for mesh in ({"fsdp": 2, "tp": 2}, {"fsdp": 2, "tp": 4}, {"fsdp": 4, "tp": 2}, {"fsdp": 82, "tp": 4}):
        check_mesh(DERECHO, mesh)


def test_an_unknown_kind_of_operation_is_said():
    with pytest.raises(CostError, match="kind 'sort'"):
        step_cost(DERECHO, MESH, trace(operations=[Operation("forward", "sort")]))


def test_more_of_anything_takes_longer():
    base = step_cost(DERECHO, MESH, llama_step()).step.seconds
    for more in (
        {"seq": 8192},
        {"batch": 16},
        {"sizes": {"L": 33, "D": 4096, "H": 32, "K": 8, "E": 128, "F": 14336, "V": 128256}},
    ):
        assert step_cost(DERECHO, MESH, llama_step(**more)).step.seconds > base
    half = replace(DERECHO, nics_per_node=2)
    wide = {"fsdp": 64, "tp": 4}
    known = llama_step(mesh=wide, batch=64)
    assert step_cost(half, wide, known).step.seconds > step_cost(DERECHO, wide, known).step.seconds


# Tokens/s a GPU that torchtitan published for 64 A100s of 80 GB, FSDP2: https://github.com/pytorch/torchtitan,
# docs/performance.md of 2024; sequences of 8192 (Llama 3) and 4096 (Llama 2) are its defaults. Of the forward pass,
# "selective" checkpointing is taken to repeat half, "full" all.
LLAMA_70B = {"L": 80, "D": 8192, "H": 64, "K": 8, "E": 128, "F": 28672, "V": 128256}
LLAMA2_13B = {"L": 40, "D": 5120, "H": 40, "K": 40, "E": 128, "F": 13824, "V": 32000}
PUBLISHED = [
    ("llama3-8b, selective op", LLAMA_8B, 1, 8192, 0.5, 2973),
    ("llama3-8b, selective layer", LLAMA_8B, 1, 8192, 0.5, 2904),
    ("llama3-70b, full", LLAMA_70B, 1, 8192, 1.0, 331),
    ("llama2-13b, none", LLAMA2_13B, 2, 4096, 0.0, 2162),
    ("llama2-13b, selective layer", LLAMA2_13B, 2, 4096, 0.5, 1914),
    ("llama2-70b, full", {**LLAMA_70B, "V": 32000}, 2, 4096, 1.0, 353),
]


@pytest.mark.parametrize(("name", "sizes", "each", "seq", "recomputed", "rate"), PUBLISHED)
def test_published_steps_lie_in_the_interval_and_near_the_estimate(name, sizes, each, seq, recomputed, rate):
    trace = llama_step(mesh={"fsdp": 64}, batch=64 * each, seq=seq, sizes=sizes, recomputed=recomputed)
    step = step_cost(load_machine("dgx-a100-80"), {"fsdp": 64}, trace).step
    measured_s = each * seq / rate
    print(
        f"{name}: predicted {step.seconds:.2f} ({step.low_s:.2f} to {step.high_s:.2f}) s, published {measured_s:.2f} s"
    )
    assert step.low_s < measured_s < step.high_s
    assert step.seconds == pytest.approx(measured_s, rel=0.10)
    # Control: an interval that holds everything would hold a step of half or twice the time, too.
    assert not step.low_s < measured_s / 2 < step.high_s
    assert not step.low_s < measured_s * 2 < step.high_s


def test_small_kernels_are_told_from_large_ones():
    small, large = (step_cost(DERECHO, {"tp": 1}, trace(operations=[one])) for one in (SHORT, LONG))
    assert small.mean_kernel_s < HOST_BOUND_BELOW_S < large.mean_kernel_s
    assert large.mean_kernel_s == pytest.approx(matmul_time(DERECHO, 8192, 8192, 8192, "bfloat16").seconds)


def test_fit_says_how_much_is_spare_or_lacking():
    memory = llama_step().memory
    fit = fit_of(DERECHO, memory)
    assert fit.fits
    assert fit.spare_bytes == DERECHO.gpu.memory_bytes - RESERVED_BYTES - memory.total
    short = fit_of(DERECHO, replace(memory, total=int(DERECHO.gpu.memory_bytes)))
    assert not short.fits
    assert short.spare_bytes == -RESERVED_BYTES
