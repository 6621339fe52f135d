"""The 2D product's closed formulas, held to runs of the algorithms that count what each device receives."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from parity.cases import SUITES, family_of, select
from parity.cases.family import CaseError, Selection
from parity.cases.linear import FAMILIES as LINEAR
from parity.check import check_collectives, note_choice
from parity.contract import Collective

SIDES = (2, 4, 8)  # 4, 16 and 64 devices
M, K, N = 16, 24, 40


def expected(plan, pass_, sizes):
    """Elements that a device receives in a pass by the formulas of the case data; of a permute the whole message."""
    case = select(SUITES["full"], [f"grid.matmul/{plan}/*/*/x2_y2/float64"])[0]
    received = Counter()
    for formula in family_of(case).collectives:
        if formula.pass_ != pass_ or formula.of_loss:
            continue
        one = formula.collective(sizes, "float64")
        n = sizes[one.axis]
        received[one.kind] += one.payload_bytes // 8 * (n if one.kind == "permute" else n - 1) // n
    return received


class Grid:
    """Blocks of matrices on q by q devices; counts the elements that each receives from another."""

    def __init__(self, q):
        self.q, self.received = q, Counter()

    def blocks(self, matrix):
        q = self.q
        return {(i, j): part for i, row in enumerate(np.split(matrix, q)) for j, part in enumerate(np.split(row, q, 1))}

    def whole(self, blocks):
        return np.block([[blocks[i, j] for j in range(self.q)] for i in range(self.q)])

    def devices(self):
        return itertools.product(range(self.q), repeat=2)

    def receive(self, kind, device, source, size):
        self.received[device, kind] += size if device != source else 0

    def most(self):
        """By kind, what the device that receives most of it receives."""
        kinds = {kind for _, kind in self.received}
        return {kind: max(self.received[device, kind] for device in self.devices()) for kind in kinds}


def run_summa(grid, x, w, dy):
    """One column of x and row of w at a time; for the gradients each device receives the parts of its own sums."""
    a, b, c, q = grid.blocks(x), grid.blocks(w), grid.blocks(dy), grid.q
    side = K // q
    y = {device: np.zeros((M // q, N // q)) for device in grid.devices()}
    for k, (i, j) in itertools.product(range(K), grid.devices()):
        column, row = a[i, k // side][:, k % side], b[k // side, j][k % side]
        grid.receive("broadcast", (i, j), (i, k // side), column.size)
        grid.receive("broadcast", (i, j), (k // side, j), row.size)
        y[i, j] += np.outer(column, row)
    forward, grid.received = grid.most(), Counter()
    dx = {device: np.zeros((M // q, side)) for device in grid.devices()}
    dw = {device: np.zeros((side, N // q)) for device in grid.devices()}
    for k, (i, j) in itertools.product(range(K), grid.devices()):
        column, row, owner = a[i, k // side][:, k % side], b[k // side, j][k % side], k // side
        grid.receive("broadcast", (i, j), (owner, j), row.size)
        dx[i, owner][:, k % side] += c[i, j] @ row
        grid.receive("reduce_scatter", (i, owner), (i, j), M // q)
        grid.receive("broadcast", (i, j), (i, owner), column.size)
        dw[owner, j][k % side] += column @ c[i, j]
        grid.receive("reduce_scatter", (owner, j), (i, j), N // q)
    return forward, grid.most(), (y, dx, dw)


def run_cannon(grid, x, w, dy):
    a, b, c, q = grid.blocks(x), grid.blocks(w), grid.blocks(dy), grid.q

    def move(blocks, target):
        """A permute counts for all devices what it brings to those that receive: in a skew some keep their block."""
        brought = max(block.size for source, block in blocks.items() if target(*source) != source)
        for device in grid.devices():
            grid.received[device, "permute"] += brought
        return {target(*source): block for source, block in blocks.items()}

    def form(stays, first, second, zeros):
        """`first` goes left, `second` up, both from their skewed places; a sum starts at 0 and is brought home."""
        left, up = ("sum" if name == "sum" else name for name in (first, second))
        moving = {"left": zeros if left == "sum" else move(operands[left], lambda i, j: (i, (j - i) % q))}
        moving["up"] = zeros if up == "sum" else move(operands[up], lambda i, j: ((i - j) % q, j))
        for step in range(q):
            if step:
                moving["left"] = move(moving["left"], lambda i, j: (i, (j - 1) % q))
                moving["up"] = move(moving["up"], lambda i, j: ((i - 1) % q, j))
            for device in grid.devices():
                p, r, s = moving["left"][device], moving["up"][device], stays[device]
                if left == "sum":
                    moving["left"][device] = p + s @ r.T
                elif up == "sum":
                    moving["up"][device] = r + p.T @ s
                else:
                    stays[device] = s + p @ r
        if left == "sum":
            return move(moving["left"], lambda i, j: (i, (j + i + q - 1) % q))
        return move(moving["up"], lambda i, j: ((i + j + q - 1) % q, j)) if up == "sum" else stays

    operands = {"a": a, "b": b}
    y = form({device: np.zeros((M // q, N // q)) for device in grid.devices()}, "a", "b", None)
    forward, grid.received = grid.most(), Counter()
    dx = form(c, "sum", "b", {device: np.zeros((M // q, K // q)) for device in grid.devices()})
    dw = form(c, "a", "sum", {device: np.zeros((K // q, N // q)) for device in grid.devices()})
    return forward, grid.most(), (y, dx, dw)


@pytest.mark.parametrize("q", SIDES)
@pytest.mark.parametrize(("plan", "run"), [("summa", run_summa), ("cannon", run_cannon)])
def test_formula_is_what_a_device_receives_when_the_algorithm_runs(plan, run, q):
    rng = np.random.default_rng(q)
    x, w, dy = (rng.integers(-3, 4, shape).astype(float) for shape in ((M, K), (K, N), (M, N)))
    forward, backward, results = run(Grid(q), x, w, dy)
    for got, want in zip(map(Grid(q).whole, results), (x @ w, dy @ w.T, x.T @ dy), strict=True):
        np.testing.assert_array_equal(got, want)
    sizes = {"M": M, "K": K, "N": N, "x": q, "y": q}
    assert (forward, backward) == (expected(plan, "forward", sizes), expected(plan, "backward", sizes))


@pytest.mark.parametrize("q", SIDES)
def test_gathered_and_stationary_receive_what_their_products_lack(q):
    sizes, p = {"M": M, "K": K, "N": N, "x": q, "y": q}, q * q
    rows, columns = M // q * K - M * K // p, K * N // q - K * N // p
    assert expected("gathered", "forward", sizes) == {"all_gather": rows + columns}
    assert expected("gathered", "backward", sizes) == {"reduce_scatter": rows + columns}
    # All rows of the own columns of x; of the sum over the other x of a product [M, N/q] the own rows.
    x_own, y_own = M * K // q - M * K // p, (q - 1) * (M // q) * (N // q)
    assert expected("stationary", "forward", sizes) == {"all_gather": x_own, "reduce_scatter": y_own}
    dy_own, dx_own = M * N // q - M * N // p, (q - 1) * (M // q) * (K // q)
    assert expected("stationary", "backward", sizes) == {"all_gather": dy_own, "reduce_scatter": dx_own}


@pytest.mark.parametrize("plan", ["summa", "cannon", "gathered", "stationary"])
def test_2d_receives_with_the_root_of_the_devices_what_1d_receives_whole(plan):
    """Per device: 1D keeps receiving all of y, 2D two sides of the grid's share of it: ratio sqrt(p), up to (n-1)/n."""

    def ratio(q):
        n = 1024
        two_d = sum(expected(plan, "forward", {"M": n, "K": n, "N": n, "x": q, "y": q}).values())
        row = next(family for family in LINEAR if family.plan == "row_parallel")
        (y,) = (formula for formula in row.collectives if formula.kind == "all_reduce" and not formula.of_loss)
        elements = y.collective({"B": 1, "S": n, "D": n, "F": n, "tp": q * q}, "float64").payload_bytes // 8
        one_d = 2 * elements * (1 - 1 / q**2)
        return one_d / two_d * (1 if plan == "cannon" else 1 - 1 / q) / (1 - 1 / q**2)

    for q in SIDES:
        assert ratio(q) == pytest.approx(math.sqrt(q * q), rel=1e-12)


def test_a_panel_that_is_not_sent_is_seen():
    (case,) = select(SUITES["full"], ["grid.matmul/summa/panel5/manual/x2_y4/float64"])
    sizes = {**case.dims, **case.mesh}
    want = [formula.collective(sizes, "float64") for formula in family_of(case).collectives]
    panels = [Collective(c.kind, c.axis, c.dtype, c.payload_bytes // 9, 9, c.pass_) for c in want[:-1]] + want[-1:]
    assert check_collectives("torch", panels, want)[0].verdict == "pass"
    assert check_collectives("torch", panels[1:], want)[0].verdict == "fail"


def test_a_sum_over_all_devices_is_over_the_axes_that_have_several():
    (case,) = select(SUITES["full"], ["grid.matmul/gathered/plain/manual/x1_y4/float64"])
    loss = next(formula for formula in family_of(case).collectives if formula.of_loss)
    assert loss.collective({**case.dims, **case.mesh}, "float64").axis == "y"
    assert loss.collective({**case.dims, "x": 2, "y": 4}, "float64").axis == "x+y"


def test_a_partitioners_choice_is_noted_beside_the_formula():
    inherent = [Collective("all_gather", "x", "float64", 80)]
    chosen = [*inherent, Collective("all_reduce", "y", "float64", 16, 2, "backward")]
    note = (
        "jax chose to move 112 B, the formula 80 B: forward x float64 all_gather 80, backward y float64 all_reduce 32"
    )
    assert note_choice("jax", chosen, inherent) == note


def meshes(*sizes):
    return [Selection(meshes=sizes, numerics=("float64",))]


def test_families_take_the_meshes_that_have_their_axes():
    cases = select(meshes({"tp": 2}, {"x": 2, "y": 2}), ["linear/row_parallel", "grid.matmul/gathered"])
    assert {(case.layer, *case.mesh) for case in cases} == {("linear", "tp"), ("grid.matmul", "x", "y")}


REFUSED = {
    "grid.matmul/cannon": ({"x": 2, "y": 4}, "cannon: the mesh x=2,y=4 is not square; x=2,y=2 would work"),
    "grid.matmul": ({"tp": 4}, "the mesh axis 'tp' is unknown; this plan uses x, y"),
    "grid.matmul/gathered": ({"x": 4}, "the mesh needs the axis 'y', e.g. --mesh x=2,y=2"),
    "linear": ({"x": 2, "y": 2}, "the mesh axis 'x' is unknown; this plan uses tp"),
}


@pytest.mark.parametrize("glob", REFUSED)
def test_a_mesh_that_suits_none_of_the_wanted_families_is_refused(glob):
    mesh, message = REFUSED[glob]
    with pytest.raises(CaseError, match=message):
        select(meshes(mesh), [glob])


def test_a_mesh_that_suits_no_family_at_all_is_refused_beside_one_that_does():
    with pytest.raises(CaseError, match="the mesh axis 'z' is unknown"):
        select(meshes({"tp": 2}, {"z": 2}), ["linear"])
