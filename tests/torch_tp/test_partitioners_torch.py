"""What DTensor inserts where it is known by hand; and that a CPU mesh hides its all-to-alls."""

import itertools

import pytest

from parity.question_contract import PartitionQuestion
from torch_tp.mesh import fake_group
from torch_tp.partitioners import all_to_alls_of_nccl, layout_of, letters_of, partition

M, K, N = 8, 16, 32
SHAPES = {"matmul": ((M, K), (K, N)), "add": ((M, K), (M, K)), "scores": ((4, 8, 6, 2),) * 2}


def inserted(program, *layouts, output=None):
    question = PartitionQuestion("q", program, {"x": 2, "y": 2}, SHAPES[program], layouts, output, "float32")
    with fake_group(4):
        calls, letters = partition(question)
    return [(call.kind, call.axis, call.payload_bytes // 4) for call in calls], letters


def test_letters_are_the_inverse_of_layouts():
    for letters in itertools.product(("R", "S0", "S1", "S2"), repeat=2):
        assert letters_of(layout_of(letters)) == letters


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
    assert inserted("matmul", x, w) == (calls, y)


def test_a_wanted_layout_turns_the_all_reduce_into_a_reduce_scatter():
    calls, _ = inserted("matmul", ("S1", "R"), ("S0", "S1"), output=("S0", "S1"))
    assert calls == [("reduce_scatter", "x", M * N // 2)]


def test_a_cpu_mesh_gathers_where_nccl_has_an_all_to_all():
    layouts = ("S0", "R"), ("S1", "R")
    on_cpu, _ = inserted("add", *layouts)
    with all_to_alls_of_nccl():
        with_nccl, _ = inserted("add", *layouts)
    assert (on_cpu, with_nccl) == ([("all_gather", "x", M * K)], [("all_to_all", "x", M * K // 2)])


def test_scores_of_heads_and_batch_send_nothing():
    """Its views shard the product of batch and heads, which DTensor reads off index tensors."""
    assert inserted("scores", ("S0", "S1"), ("S0", "S1")) == ([], ("S0", "S1"))


def test_what_dtensor_refuses_is_raised():
    with pytest.raises(RuntimeError, match="_StridedShard"):
        inserted("scores", ("S1", "S1"), ("S1", "S1"))
