"""What XLA inserts where it is known by hand."""

import itertools

import jax
import pytest

from jax_tp.partitioners import layout_of, letters_of, partition, why_types_refuse
from jax_tp.trace import why_no_a100_compiler
from parity.hlo import read_collectives
from parity.question_contract import PartitionQuestion

M, K, N = 8, 16, 32
MESH = {"x": 2, "y": 2}

jax.config.update("jax_platforms", "cpu")  # as workers do that compile for devices that are not there
pytestmark = pytest.mark.skipif(why_no_a100_compiler() is not None, reason="needs the extra a100")


def question(*layouts, output=None):
    return PartitionQuestion("q", "matmul", MESH, ((M, K), (K, N)), layouts, output, "float32")


def inserted(*layouts, output=None):
    compiled, letters = partition(question(*layouts, output=output))
    calls = read_collectives(compiled.as_text(), MESH).collectives
    return [(call.kind, call.axis, call.payload_bytes // 4) for call in calls], letters


def test_letters_are_the_inverse_of_layouts():
    for letters in itertools.product(("R", "S0", "S1", "S2"), repeat=2):
        assert letters_of(layout_of(letters, ("x", "y")), ("x", "y")) == letters


@pytest.mark.parametrize(
    ("x", "w", "calls", "y"),
    [
        (("R", "R"), ("S1", "R"), [], ("S1", "R")),  # column-parallel
        (("S1", "R"), ("S0", "R"), [("all_reduce", "x", M * N)], ("R", "R")),  # row-parallel
        (("S1", "S0"), ("S0", "R"), [("all_reduce", "x", M // 2 * N)], ("R", "S0")),  # and data-parallel
        (("S1", "S1"), ("S0", "S0"), [("all_reduce", "x+y", M * N)], ("R", "R")),
    ],
)
def test_products_whose_operands_fit_send_what_their_sums_need(x, w, calls, y):
    assert inserted(x, w) == (calls, y)


def test_a_wanted_layout_turns_the_all_reduce_into_a_reduce_scatter():
    calls, _ = inserted(("S1", "R"), ("S0", "S1"), output=("S0", "S1"))
    assert calls == [("reduce_scatter", "x", M * N // 2)]


def test_explicit_types_refuse_what_is_ambiguous_and_only_that():
    assert "ambiguous" in why_types_refuse(question(("R", "S1"), ("R", "S0")))
    assert "consistent sharding" in why_types_refuse(question(("S0", "S1"), ("S0", "S1")))
    assert why_types_refuse(question(("S0", "R"), ("R", "S1"))) == ""
