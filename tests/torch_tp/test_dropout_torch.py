"""The masks that a whole model draws: one of its own in each layer and step, the same elements at every tp degree."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from parity.cases import FAMILIES, Selection, cases_of
from parity.cases.block import GPT
from parity.reference.dropout import kept as formula
from torch_tp import block, dropout, mesh
from torch_tp.layers import LAYERS
from torch_tp.layouts import child
from torch_tp.tasks import place_batch

STEP = 77
MODELS = ["models.gpt/sequence_parallel", "models.bert/megatron", "models.vit/field_sequence_parallel"]


def case_of(model, tp, style):
    """The model's case with dropout, and its arrays: masks depend on no value."""
    family = next(family for family in FAMILIES if f"{family.layer}/{family.plan}" == model)
    cases = cases_of(family, Selection(({"tp": tp},), ("float64",)))
    case = next(case for case in cases if case.variant.endswith("_dropout") and case.style == style)
    params, batch = family.shapes(case)
    arrays = {f"params.{name}": np.zeros(shape) for name, shape in params.items()}
    arrays |= {name: np.zeros(shape, int if name in family.ids else float) for name, shape in batch.items()}
    return case, {**arrays, "target": np.zeros(())}


@contextmanager
def rank_of(rank, world):
    """Be one rank of so many that are not there: what they would send is missing, and masks need none of it."""
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        mesh._make_mesh.cache_clear()
        dist.destroy_process_group()


def masks_of_rank(model, rank, tp, style, step, monkeypatch):
    """In the order of the layers: the dim that is cut, and the rank's part."""
    case, arrays = case_of(model, tp, style)
    original, drawn = dropout.kept, []

    def record(x, step, draw, dim=None, axis=None):
        mask = original(x, step, draw, dim, axis)
        if not isinstance(x, DTensor):  # which asks for its local part
            drawn.append((dim, mask))
        return mask

    with rank_of(rank, tp), monkeypatch.context() as patch:
        patch.setattr(dropout, "kept", record)
        axis, layer = mesh.make_mesh({"tp": tp}, "cpu"), LAYERS[case.layer]
        plan = layer.PLANS[case.plan]
        module = layer.build(axis, style, plan, child(arrays, "params"), **case.options)
        inputs, _ = place_batch({**arrays, "step": np.array(step)}, axis, plan)
        with loss_parallel():
            module(*inputs.values())
    return drawn


def masks_of(model, tp, monkeypatch, style="manual", step=STEP):
    """The masks of all layers, put together of all ranks' parts; what is not cut is the same everywhere."""
    found = []
    for parts in zip(*(masks_of_rank(model, rank, tp, style, step, monkeypatch) for rank in range(tp)), strict=True):
        dim, first = parts[0]
        if dim is None:
            assert all(torch.equal(mask, first) for _, mask in parts)
        found.append((first if dim is None else torch.cat([mask for _, mask in parts], dim)).numpy())
    return found


def alike(masks):
    """Pairs of layers with the same mask."""
    pairs = [(i, j) for j in range(len(masks)) for i in range(j)]
    return [(i, j) for i, j in pairs if np.array_equal(masks[i], masks[j])]


@pytest.mark.parametrize(
    ("model", "tp"), [*((MODELS[0], tp) for tp in (1, 2, 3, 4)), *((model, 3) for model in MODELS[1:])]
)
def test_masks_of_a_model_at_every_tp_are_those_of_the_formula(model, tp, monkeypatch):
    case, _ = case_of(model, tp, "manual")
    masks = masks_of(model, tp, monkeypatch)
    numbers = [6, 0, 1, 2, 3, 4, 5]  # of what enters two blocks of three
    assert len(masks) == len(numbers)
    for mask, number in zip(masks, numbers, strict=True):
        rate, seed = case.options["drop_rate"], case.options["seed"]
        assert np.array_equal(mask, formula(mask.shape, rate, seed, number, STEP)), number


@pytest.mark.parametrize("style", ["auto", "typed", "manual"])
def test_no_two_layers_and_no_two_steps_have_the_same_mask(style, monkeypatch):
    masks = masks_of(MODELS[0], 2, monkeypatch, style)
    assert alike(masks) == []
    later = masks_of(MODELS[0], 2, monkeypatch, style, STEP + 1)
    assert not any(np.array_equal(one, other) for one, other in zip(masks, later, strict=True))


def test_blocks_of_one_number_are_seen_to_have_the_same_masks(monkeypatch):
    original = block.build
    monkeypatch.setattr(block, "build", lambda *args, **options: original(*args, **{**options, "number": 0}))
    assert alike(masks_of(MODELS[0], 2, monkeypatch)) == [(1, 4), (2, 5), (3, 6)]


def test_dropout_is_refused_on_a_grid_and_so_is_a_step_that_is_no_word():
    grid, block_options = LAYERS["grid.block"], {"num_heads": 1, "num_kv_heads": 1, **GPT}
    with pytest.raises(ValueError, match=r"^drop_rate=0\.1: a block on a grid has no dropout; 0 would work$"):
        grid.build(None, "manual", grid.PLANS["summa"], {}, **block_options, drop_rate=0.1)
    inputs = {"x": np.zeros((1, 2), int), "labels": np.zeros((1, 2), int), "step": np.array(-1)}
    with pytest.raises(ValueError, match=r"^step=-1: expected a number of 32 bits, 0 to 4294967295$"):
        LAYERS["models.gpt"].check_inputs(inputs, num_ids=5)
    fields = {"x": np.zeros((1, 1, 2, 2)), "truth": np.zeros((1, 1, 2, 2)), "step": np.array(2**32)}
    with pytest.raises(ValueError, match=r"^step=4294967296: expected"):
        LAYERS["models.vit"].check_inputs(fields, patch=2)
