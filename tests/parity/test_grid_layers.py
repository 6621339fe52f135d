"""The closed formulas of layers on the grid: against those of their products, and as functions of sizes and devices."""

from collections import Counter
from dataclasses import replace

import pytest

from parity.cases import FAMILIES
from parity.cases.family import CaseError, Selection, cases_of
from parity.cases.grid_block import collectives as block_collectives
from parity.cases.grid_layers import HEADS_OF_TABLE, exchange, norm_collectives
from parity.cases.grid_product import product
from parity.check import check_collectives

SIZES = {"B": 24, "S": 6, "D": 48, "H": 12, "K": 12, "E": 4, "F": 192, "V": 96}  # H*E = D, F = 4 D


def payload(formulas, pass_, sizes):
    """Elements by kind and axis."""
    total = Counter()
    for formula in formulas:
        if formula.pass_ == pass_:
            total[formula.kind, formula.axis] += formula.collective(sizes, "float64").payload_bytes // 8
    return total


def of_weights(formulas):
    """The products alone, without biases and norms, and without the gate that only Llama has."""
    return [f for f in formulas if f.param.endswith(".w") and "gate" not in f.param]


@pytest.mark.parametrize("q", [2, 3, 4])
def test_summa_block_sends_what_its_docstring_says(q):
    """Forward (7 B S D + 12 D^2) / q elements: activations D + D + D + 4 D wide, weights 3 + 1 + 4 + 4 squares."""
    sizes = {**SIZES, "x": q, "y": q}
    tokens, D = SIZES["B"] * SIZES["S"], SIZES["D"]
    forward, backward = (
        payload(of_weights(block_collectives("summa")), pass_, sizes) for pass_ in ("forward", "backward")
    )
    assert forward == {("broadcast", "y"): 7 * tokens * D // q, ("broadcast", "x"): 12 * D * D // q}
    assert sum(backward.values()) == 2 * sum(forward.values())


@pytest.mark.parametrize(("x", "y"), [(2, 2), (2, 4), (4, 2)])
def test_stationary_block_sends_no_weights(x, y):
    """Activations only: into hidden features, and back, with the roles of x and y exchanged."""
    sizes = {**SIZES, "x": x, "y": y}
    tokens, D, F = SIZES["B"] * SIZES["S"], SIZES["D"], SIZES["F"]
    forward = payload(of_weights(block_collectives("stationary")), "forward", sizes)
    # q, k, v and up: x of all rows of the own columns, [B, S, D/y]; then sums of [B, S, 3 D/x] and [B, S, F/x].
    # o and down: all of [B, S, D/x] and [B, S, F/x]; sums of [B, S, D/y].
    assert forward == {
        ("all_gather", "x"): 2 * tokens * D // y,
        ("reduce_scatter", "y"): tokens * (3 * D + F) // x,
        ("all_gather", "y"): tokens * (D + F) // x,
        ("reduce_scatter", "x"): 2 * tokens * D // y,
    }


def test_head_of_a_tied_table_is_the_second_form_of_a_product_with_the_table():
    """test_grid_matmul.py counts what the forms send; y = h table^T is dx = dy w^T with K = V and N = D."""
    sizes = {**SIZES, "x": 2, "y": 4}
    forms = product("summa", "B*S", "V", {"w": "D"})
    head = HEADS_OF_TABLE["summa"]
    second = [f for f in forms if "dx = dy w^T" in f.reason]
    others = [f for f in forms if "dx = dy w^T" not in f.reason]
    assert payload(head, "forward", sizes) == payload(second, "backward", sizes)
    together = payload(others, "forward", sizes) + payload(others, "backward", sizes)
    assert payload(head, "backward", sizes) == together


def test_exchanged_product_is_the_product_on_the_transposed_grid():
    plain, exchanged = (product("stationary", "B*S", "D", {"w": "F"}, way) for way in (False, True))
    sizes = {**SIZES, "x": 2, "y": 4}
    turned = {**SIZES, "x": 4, "y": 2}
    for pass_ in ("forward", "backward"):
        there, back = payload(plain, pass_, turned), payload(exchanged, pass_, sizes)
        assert {(kind, exchange(axis)): size for (kind, axis), size in there.items()} == back
    assert exchange("B@x S F@y") == "B@y S F@x"


def test_norm_that_does_not_sum_its_gradient_over_rows_is_seen():
    sizes = {**SIZES, "x": 2, "y": 2}
    want = [formula.collective(sizes, "float64") for formula in norm_collectives()]
    without = [one for one in want if one.axis != "x"]
    assert check_collectives("torch", want, want)[0].verdict == "pass"
    assert check_collectives("torch", without, want)[0].reasons == [
        "torch: backward x float64 all_reduce moves 0 B, the formula says 384 B"
    ]


def grid_family(layer, plan):
    return next(family for family in FAMILIES if (family.layer, family.plan) == (layer, plan))


REFUSED = {
    ("grid.block", "summa", "D"): ("y=2 does not divide D=35", {"D": 35}),
    ("grid.block", "summa", "heads"): ("y=2 does not divide H=9", {"H": 9, "K": 9}),
    ("grid.attention", "stationary", "heads"): ("x=2 does not divide H=9", {"H": 9, "K": 9}),
    ("grid.models.gpt", "summa", "vocabulary"): ("x=2 does not divide V=31", {"V": 31}),
    ("grid.mlp", "stationary", "batch"): ("x=2 does not divide B=3", {"B": 3}),
}


@pytest.mark.parametrize("which", REFUSED, ids="-".join)
def test_dims_that_the_grid_does_not_divide_are_refused_in_one_line(which):
    layer, plan, _ = which
    message, dims = REFUSED[which]
    selection = Selection(({"x": 2, "y": 2},), ("float64",), dims=dims)
    with pytest.raises(CaseError, match=message):
        list(cases_of(grid_family(layer, plan), selection))


def test_cannon_takes_square_grids_only():
    family = grid_family("grid.block", "cannon")
    assert family.fits({"x": 3, "y": 3})
    assert not family.fits({"x": 2, "y": 4})
    assert replace(family, square=False).fits({"x": 2, "y": 4})
