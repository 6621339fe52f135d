"""What 1D and 2D products send and hold, traced on groups that are not there, is what the formulas say."""

from fractions import Fraction

import pytest
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from parity.contract import Collective
from parity.question_contract import ChainQuestion
from parity.received import received_bytes
from parity.scaling import TWO_D, block_questions, by_kind, closed, crossover, pair_questions
from torch_tp.grid.chain import HeldBytes, chain
from torch_tp.grid.summa import Summa
from torch_tp.mesh import fake_group, make_mesh

DIMS = {"M": 768, "D": 256, "F": 512}


def traced(question):
    with fake_group(question.num_devices):
        return chain(question)


def collectives(question):
    return [Collective(c.kind, c.axis, c.dtype, c.payload_bytes, 1, c.pass_) for c in traced(question).calls]


@pytest.mark.parametrize("question", pair_questions(DIMS), ids=lambda question: question.id)
def test_what_a_pair_sends_is_the_closed_formula(question):
    want = closed(question.plan, question.num_devices, DIMS)
    assert by_kind(collectives(question)) == by_kind(want) != by_kind(want[1:])


@pytest.mark.parametrize("plan", [plan for plan in TWO_D if plan != "stationary"])
@pytest.mark.parametrize("gpus", [16, 64])
def test_2d_wins_from_the_crossover_on_and_not_before(plan, gpus):
    around = crossover(plan, gpus, DIMS) * DIMS["D"] / gpus  # in units of tokens that the mesh divides
    below = -(-around.numerator // around.denominator) - 1
    for M, wins in ((below * gpus, False), ((below + 2) * gpus, True)):
        one, two = (
            received_bytes(collectives(question), question.mesh)
            for question in pair_questions({**DIMS, "M": M}, (gpus,))
            if question.plan in ("megatron", plan)
        )
        assert (two < one) is wins


@pytest.mark.parametrize(("F", "q"), [(256, 2), (512, 4), (1024, 4), (1024, 8)])
def test_stationary_wins_where_the_side_is_more_than_f_whatever_the_tokens(F, q):
    sizes = {**DIMS, "F": F}
    assert crossover("stationary", q * q, sizes) == (0 if q > F // DIMS["D"] else None)


def test_crossovers_are_those_that_the_docstring_derives():
    f = Fraction(DIMS["F"], DIMS["D"])
    for q in (2, 4, 8, 16):
        for plan, forms in (("gathered", 2), ("summa", 3)):
            room = 4 * (q + 1) - forms * (1 + f)
            assert crossover(plan, q * q, DIMS) == (2 * forms * f / room if room > 0 else None)


def held(plan, q, backward):
    (question,) = (one for one in block_questions((q,)) if one.plan == plan)
    return traced(ChainQuestion(**{**vars(question), "backward": backward})).temporary_bytes


@pytest.mark.parametrize("backward", [False, True])
def test_temporaries_of_summa_do_not_grow_with_the_side_and_those_of_gathered_do(backward):
    block = 2 * 1024**2
    for plan in ("summa", "cannon"):
        assert held(plan, 4, backward) - held(plan, 2, backward) < 2**12  # a number or two a panel
    for plan in ("gathered", "stationary"):
        assert held(plan, 4, backward) - held(plan, 2, backward) >= 3 * block


def test_held_bytes_are_those_alive():
    with HeldBytes() as counted:
        first = torch.zeros(256)
        view = first.view(16, 16)
        del first
        assert counted.held == 1024
        del view
        assert (counted.held, counted.peak) == (0, 1024)
        second = [torch.zeros(256), torch.zeros(256)]
        assert (counted.held, counted.peak) == (2048, 2048)
        del second


class Order(TorchDispatchMode):
    """The names of broadcasts, waits and products, as they are dispatched."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        if name in ("broadcast", "reduce_scatter_tensor", "wait_tensor", "addmm_", "mm"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_the_next_panel_is_on_its_way_before_this_one_is_multiplied():
    """On real tensors: with fake ones torch waits for every collective at once."""
    with fake_group(4), unset_fake_temporarily():
        mesh = make_mesh({"x": 2, "y": 2}, "cpu")
        a, b = torch.zeros(8, 8), torch.zeros(8, 8)
        with Order() as order:
            Summa(mesh["x"], mesh["y"], 4).ab(a, b)  # four panels
        with Order() as gradient:
            Summa(mesh["x"], mesh["y"], 8).abt(torch.zeros(8, 8), b)  # two sums, of two owners each
    fetch, use = ["broadcast"] * 2, ["wait_tensor"] * 2 + ["addmm_"]
    assert order.names == fetch + (fetch + use) * 3 + use
    fetch, use, add = ["broadcast"], ["wait_tensor", "mm"], ["reduce_scatter_tensor"]
    whole = ["wait_tensor"] * 2
    assert gradient.names == fetch + (fetch + use) * 2 + add + fetch + use + use + add + whole
