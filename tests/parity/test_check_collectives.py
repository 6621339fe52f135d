"""Which compiled collectives count as those of the formula, and which do not."""

from __future__ import annotations

import pytest

from parity.cases.notation import Expected
from parity.check import Finding, check_collectives
from parity.contract import Collective

SIZES = {"B": 3, "S": 12, "D": 25, "tp": 4}
LOSS = Expected("all_reduce", "tp", "forward", "1", "loss", of_loss=True)
SCALE = Expected("all_reduce", "tp", "backward", "D", "dscale", of_tokens=True)
Y = Expected("all_reduce", "tp", "forward", "B*S*D", "y")


def judge(formulas: list[Expected], *float32: Expected, dtype: str = "bfloat16", allow: bool = True):
    """The finding where the compiler takes float32 for some, and is allowed it for sums over tokens or not at all."""
    expected = [formula.collective(SIZES, dtype) for formula in formulas]
    wider = [formula.collective(SIZES, dtype, compiled=True) for formula in formulas]
    got = [formula.collective(SIZES, "float32" if formula in float32 else dtype) for formula in formulas]
    return check_collectives("jax", got, expected, is_compiled=True, wider=wider if allow else ())


def test_sums_over_tokens_may_be_reduced_in_float32_and_the_excess_is_named() -> None:
    finding, notes = judge([LOSS, SCALE, Y], SCALE)
    assert finding.verdict == "pass"
    assert notes == ["jax: sums over tokens reduced in float32, rounded afterwards: 50 B more"]
    assert judge([LOSS, SCALE, Y])[0].verdict == "pass"
    assert judge([LOSS, SCALE, Y])[1] == []


def test_nothing_else_may_be_wider() -> None:
    assert judge([LOSS, SCALE, Y], SCALE, allow=False)[0].verdict == "fail"
    assert judge([LOSS, SCALE, Y], Y)[0].verdict == "fail"
    assert judge([LOSS, SCALE, Y], SCALE, Y)[0].verdict == "fail"
    twice = [formula.collective(SIZES, "float32") for formula in (SCALE, SCALE)]
    once = [SCALE.collective(SIZES, "float32")]
    assert check_collectives("jax", twice, once, True, once)[0].verdict == "fail"


def rewritten(by_compiler: bool, **passes: str) -> tuple[Finding, list[str]]:
    """An all-reduce where the plan has a reduce-scatter and an all-gather, in the given passes."""
    planned = [Collective(kind, "tp", "float32", 64, 1, passes[kind]) for kind in ("reduce_scatter", "all_gather")]
    done = [Collective("all_reduce", "tp", "float32", 64, 1, passes["all_gather"])]
    return check_collectives("jax", done, planned, is_compiled=by_compiler)


def test_a_compilers_rewrite_that_keeps_the_bytes_on_the_wire_is_named():
    finding, rewrites = rewritten(True, reduce_scatter="forward", all_gather="forward")
    assert (finding.verdict, rewrites) == ("pass", ["jax: reduce-scatter + all-gather = all-reduce"])


def test_what_is_dispatched_may_not_be_rewritten():
    assert rewritten(False, reduce_scatter="forward", all_gather="forward")[0].verdict == "fail"


def test_collectives_of_two_passes_are_no_equivalent_of_one():
    assert rewritten(True, reduce_scatter="forward", all_gather="backward")[0].verdict == "fail"


@pytest.mark.parametrize("is_compiled", [True, False])
def test_another_dtype_of_the_same_bytes_is_seen(is_compiled):
    planned = [Collective("all_reduce", "tp", "bfloat16", 64)]
    assert check_collectives("x", planned, planned, is_compiled)[0].verdict == "pass"
    got = [Collective("all_reduce", "tp", "float32", 64)]
    assert check_collectives("x", got, planned, is_compiled)[0].verdict == "fail"


def nested(whole_bytes: int, over_x_bytes: int, is_compiled: bool = True) -> tuple[Finding, list[str]]:
    """The plan sums 96 bytes over x and then over dp; what is found does it over both at once, and the rest over x."""
    planned = [Collective("all_reduce", axis, "float32", 96, 1, "backward") for axis in ("x", "dp")]
    done = [
        Collective("all_reduce", "dp+x", "float32", whole_bytes, 1, "backward"),
        Collective("all_reduce", "x", "float32", over_x_bytes, 1, "backward"),
        Collective("all_reduce", "dp", "float32", 96 - whole_bytes, 1, "backward"),
    ]
    return check_collectives("jax", done, planned, is_compiled)


def test_sums_over_two_axes_may_be_one_and_are_named() -> None:
    finding, rewrites = nested(64, 32)
    assert (finding.verdict, rewrites) == ("pass", ["jax: all-reduces over dp and x = one over all of them"])
    assert nested(64, 40)[0].verdict == "fail"
    assert nested(64, 32, is_compiled=False)[0].verdict == "fail"


def test_a_sum_over_two_axes_may_be_combined_with_those_of_a_later_pass() -> None:
    planned = [Collective("all_reduce", axis, "float64", 8, 2, "forward") for axis in ("tp", "dp")]
    for pass_, size, verdict in (("forward", 16, "pass"), ("backward", 16, "pass"), ("backward", 24, "fail")):
        done = [Collective("all_reduce", "dp+tp", "float64", size, 1, pass_)]
        assert check_collectives("jax", done, planned, is_compiled=True)[0].verdict == verdict


@pytest.mark.parametrize(
    ("planned_in", "size", "done_in"),
    [("forward", 8, "optimizer"), ("backward", 8, "optimizer"), ("forward", 1 << 20, "backward")],
)
def test_nothing_but_a_loss_may_be_summed_in_a_later_pass(planned_in: str, size: int, done_in: str) -> None:
    planned = [Collective("all_reduce", axis, "float64", size, 1, planned_in) for axis in ("tp", "dp")]
    done = [Collective("all_reduce", "dp+tp", "float64", size, 1, done_in)]
    assert check_collectives("jax", done, planned, is_compiled=True)[0].verdict == "fail"
