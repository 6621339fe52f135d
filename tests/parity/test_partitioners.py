"""The table of both partitioners, on answers made by hand."""

import pytest

from parity.contract import Collective
from parity.partitioners import DIMS, MESH, PROGRAMS, Row, explicit_products, questions_of, summary_of
from parity.question_contract import Answer, read_questions, write_questions
from parity.received import received_bytes

BYTES = 2**20


def received(kind, axis="x", mesh=MESH):
    return received_bytes([Collective(kind, axis, "bfloat16", BYTES)], mesh) / BYTES


def test_received_is_what_comes_from_others():
    mesh = {"x": 4, "y": 8}
    assert [received(kind, "x", mesh) * 4 for kind in ("all_gather", "reduce_scatter", "all_to_all")] == [3, 3, 3]
    assert received("all_reduce", "x+y", mesh) * 32 == 2 * 31
    assert received("broadcast", "y", mesh) * 8 == 7
    assert received("permute", "y", mesh) == 1


def test_every_combination_of_layouts_is_asked_once():
    questions = questions_of(list(PROGRAMS), DIMS, "bfloat16")
    assert len({one.id for one in questions}) == len(questions)
    counts = {name: sum(one.id.startswith(f"{name}/") for one in questions) for name in PROGRAMS}
    assert [counts[name] for name in ("matmul", "matmul_to_blocks", "linear", "scores", "add")] == [81, 81, 81, 25, 81]
    assert [counts[name] for name in ("sum_rows", "sum_columns", "sum_all", "softmax")] == [9] * 4


def test_questions_survive_the_border(tmp_path):
    questions = questions_of(["matmul_to_blocks", "linear"], DIMS, "float32")
    write_questions(tmp_path, questions)
    assert list(read_questions(tmp_path).values()) == questions


def row(torch, jax):
    (question, *_) = questions_of(["matmul"], DIMS, "bfloat16")
    return Row(question, *(Answer("q", **answer) for answer in (torch, jax)))


GATHER = {"collectives": (Collective("all_gather", "x", "bfloat16", BYTES),)}
REDUCE = {"collectives": (Collective("all_reduce", "x", "bfloat16", BYTES),)}
REFUSED = {"refused": "NotImplementedError: no"}


@pytest.mark.parametrize(
    ("torch", "jax", "fewer"),
    [
        (GATHER, REDUCE, "torch"),
        (REDUCE, GATHER, "jax"),
        (GATHER, GATHER, "equal"),
        ({}, {}, "equal"),
        (REFUSED, {}, ""),
    ],
)
def test_fewer_bytes_win_and_a_refusal_does_not(torch, jax, fewer):
    assert row(torch, jax).fewer == fewer


def test_summary_counts_every_row_once():
    rows = [row(GATHER, REDUCE), row(REDUCE, GATHER), row({}, {}), row(REFUSED, {}), row({}, REFUSED)]
    counts = summary_of(rows)
    assert counts["rows"] == 5
    decided = (
        counts["torch_fewer"],
        counts["jax_fewer"],
        counts["equal"],
        counts["torch_refused"],
        counts["jax_refused"],
    )
    assert decided == (1, 1, 1, 1, 1)


def test_explicit_products_stand_beside_a_row_of_the_same_layouts():
    asked = {one.layouts for one in questions_of(["matmul_to_blocks"], DIMS, "bfloat16")}
    products = {name: (x, received_bytes(calls, MESH)) for name, x, calls in explicit_products(DIMS, "bfloat16")}
    assert {(x, ("S0", "S1")) for x, _ in products.values()} <= asked
    M, K, N = DIMS["M"], DIMS["K"], DIMS["N"]
    assert products["gathered"][1] == 2 * (M // 2 * K + K * N // 2) // 2 == products["summa"][1]
    assert products["cannon"][1] == 2 * products["summa"][1]
    assert products["stationary"][1] == 2 * (M * K // 2 + M * N // 2) // 2
