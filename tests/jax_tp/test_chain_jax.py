"""What 1D and 2D products send and hold as XLA compiles them for A100s is what the formulas say."""

import jax
import pytest

from jax_tp.grid.chain import chain
from jax_tp.trace import why_no_a100_compiler
from parity.hlo import read_collectives
from parity.scaling import block_questions, by_kind, closed, pair_questions

jax.config.update("jax_platforms", "cpu")  # as workers do that compile for devices that are not there
pytestmark = pytest.mark.skipif(why_no_a100_compiler() is not None, reason="needs the extra a100")

DIMS = {"M": 768, "D": 256, "F": 512}


@pytest.mark.parametrize("question", pair_questions(DIMS, (16,)), ids=lambda question: question.id)
def test_what_a_pair_sends_is_the_closed_formula(question):
    calls = read_collectives(chain(question).compiled.as_text(), question.mesh).collectives
    want = closed(question.plan, question.num_devices, DIMS)
    assert by_kind(calls) == by_kind(want) != by_kind(want[1:])


def test_temporaries_of_summa_do_not_grow_with_the_side_and_those_of_gathered_do():
    held = {
        (one.plan, one.mesh["x"]): chain(one).temporary_bytes
        for one in block_questions((2, 4))
        if one.plan in ("summa", "gathered")
    }
    block = 2 * 1024**2
    assert held["summa", 4] - held["summa", 2] < block / 64  # XLA aligns what it holds, a few bytes a panel
    assert held["gathered", 4] - held["gathered", 2] >= 4 * block
