"""The table of 1D and 2D plans over numbers of GPUs, on answers made by hand; the plot; ratios of times."""

from dataclasses import replace
from fractions import Fraction

import pytest
from typer.testing import CliRunner

from parity.bench_grid import SIZES, bench_questions, ratios_of
from parity.cli import app
from parity.question_contract import Answer, PairedTimes, PairsQuestion, read_questions, write_questions
from parity.received import received_bytes
from parity.report.scaling import plot_curves
from parity.scaling import DIMS, GPUS, ONE_D, TWO_D, closed, curve_of, mesh_of, pair_questions, sentence

PLANS = (*ONE_D, *TWO_D)
TRUE = {f"{plan}/{p}": Answer(f"{plan}/{p}", tuple(closed(plan, p, DIMS))) for plan in PLANS for p in GPUS}


def curves(**answers):
    return {plan: curve_of(plan, DIMS, {"torch": TRUE, "jax": TRUE, **answers}) for plan in PLANS}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("q", [2, 4, 8, 16])
def test_received_is_the_formula_of_the_docstring(plan, q):
    p, (M, D, F) = q * q, (DIMS[name] for name in "MDF")
    moved = M * (D + F) + 2 * D * F
    elements = {
        "megatron": Fraction(4 * M * D * (p - 1), p),
        "sequence_parallel": Fraction(4 * M * D * (p - 1), p),
        "summa": Fraction(3 * moved * (q - 1), p),
        "cannon": Fraction(3 * moved, q),
        "gathered": Fraction(2 * moved * (q - 1), p),
        "stationary": Fraction(4 * M * (D + F) * (q - 1), p),
    }
    assert received_bytes(closed(plan, p, DIMS), mesh_of(plan, p)) == 2 * elements[plan]


def test_slopes_of_2d_go_to_minus_a_half_and_those_of_1d_to_nought():
    found = curves()
    assert found["cannon"].slope() == pytest.approx(-0.5, abs=1e-12)
    for plan in TWO_D:
        assert -0.5 - 1e-12 < found[plan].slope(2) < -0.44  # (q-1)/q^2 is q^-1 but for the own block
    for plan in ONE_D:
        assert 0 < found[plan].slope(2) < 0.01


def test_a_trace_that_sends_more_is_told():
    assert not any(curve.differs for curve in curves().values())
    (first, *rest) = TRUE["summa/16"].collectives
    more = (replace(first, payload_bytes=first.payload_bytes + 2), *rest)
    wrong = {**TRUE, "summa/16": replace(TRUE["summa/16"], collectives=more)}
    found = curves(jax=wrong)
    assert [plan for plan, curve in found.items() if curve.differs] == ["summa"]
    (line,) = found["summa"].differs
    assert line == "jax, summa on 16 GPUs: more than the formula by {'broadcast y': 2} bytes"


def test_the_sentence_names_shapes():
    text = sentence(DIMS)
    assert "on 4 GPUs gathered from M/D = 8;" in text
    assert "stationary always" in text
    assert "on 4 GPUs 1D always" in sentence({**DIMS, "F": 5 * DIMS["D"]})


def test_curves_are_drawn(tmp_path):
    plot_curves(list(curves().values()), DIMS, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_questions_survive_the_border(tmp_path):
    chains = pair_questions(DIMS)
    for questions in (chains, [PairsQuestion(one, 7) for one in chains]):
        write_questions(tmp_path, questions)
        assert list(read_questions(tmp_path).values()) == questions


def test_a_ratio_is_that_of_the_slowest_ranks_of_a_pair():
    ranks = [PairedTimes("q", 0, (1.0, 2.0), (3.0, 1.0)), PairedTimes("q", 1, (2.0, 1.0), (1.0, 5.0))]
    assert ratios_of(ranks) == (1.5, 2.5)
    with pytest.raises(ValueError, match="shorter"):
        ratios_of([ranks[0], PairedTimes("q", 1, (2.0,), (1.0,))])


@pytest.mark.parametrize(("side", "has_cannon"), [(2, True), (1, False)])
def test_cannon_is_timed_on_square_grids_only(side, has_cannon):
    questions = bench_questions(SIZES, {"x": side, "y": 4 // side}, (256, 512), True, "float32")
    assert {one.plan for one in questions} == {"summa", "stationary", *(["cannon"] if has_cannon else [])}
    assert len({one.id for one in questions}) == len(questions)


REFUSED = {
    ("partitioners", "multiply"): "PROGRAM 'multiply': there are matmul",
    ("partitioners", "--dims", "Q=3"): "--dims Q: there are M, K, N",
    ("partitioners", "--dtype", "int8"): "--dtype 'int8'",
    ("scaling", "--dims", "M=100"): "--dims M=100: 256 GPUs must divide it",
    ("scaling", "--plot", "/nowhere/x.png"): "there is no directory /nowhere",
    ("bench", "grid", "--mesh", "tp=4"): "the axes are x and y, not tp",
    ("bench", "grid", "--dims", "M=6"): "--dims M=6: 4 devices must divide it",
    ("bench", "grid", "--device", "tpu"): "--device 'tpu'",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_bad_input_ends_in_one_line(arguments):
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert REFUSED[arguments] in " ".join(done.output.split())
