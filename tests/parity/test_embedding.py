from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest

from parity.contract import DTYPES
from parity.inputs import make_inputs
from parity.reference import evaluate
from parity.tolerance import bounds, error_in_bounds

SHAPES = {"table": (12, 4)}, {"x": (3, 5)}
NUM_IDS = 10  # 15 tokens of 10 ids: some occur more than once
DEVICES = 4


def inputs(dtype: str = "float64", operands: str = "normal", seed: int = 0) -> tuple[dict, dict]:
    return make_inputs("embedding", {}, *SHAPES, {"x": NUM_IDS}, dtype, operands, seed)


@pytest.fixture(params=["torch_tp", "jax_tp"])
def layer(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"{request.param}.embedding")


def test_output_and_gradient_match_loops_over_tokens() -> None:
    params, batch = inputs(operands="integers")
    got = evaluate("embedding", {}, params, batch)
    gradient = np.zeros((12, 4))
    for b, s in np.ndindex(3, 5):
        row = batch["x"][b, s]
        assert np.array_equal(got["y"][b, s], params["table"][row])
        gradient[row] += params["table"][row] - batch["target"][b, s]
    assert np.array_equal(got["table.grad"], gradient)
    assert set(got) == {"y", "loss", "table.grad"}
    assert np.bincount(batch["x"].ravel()).max() > 1


def test_rows_of_the_padding_have_no_gradient_and_no_bound() -> None:
    params, batch = inputs("float32")
    assert np.all(params["table"][NUM_IDS:] != 0)
    assert np.all(evaluate("embedding", {}, params, batch)["table.grad"][NUM_IDS:] == 0)
    assert np.all(bounds("embedding", {}, params, batch, "float32", DEVICES, 0)["table.grad"][NUM_IDS:] == 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_lookup_rounds_nothing_and_its_gradient_does(dtype: str) -> None:
    params, batch = inputs(dtype)
    bound = bounds("embedding", {}, params, batch, dtype, DEVICES, 0)
    assert np.all(bound["y"] == 0)
    used = np.unique(batch["x"])
    assert np.all(bound["table.grad"][used] > 0)


def shards_of(params: dict, ids: np.ndarray, tp: int, mask: bool) -> np.ndarray:
    """The masked lookup of each device, summed; without the mask, other devices' ids read some own row."""
    total = np.zeros((*ids.shape, 4))
    for rank, table in enumerate(np.split(params["table"], tp)):
        own = ids - rank * len(table)
        is_own = (own >= 0) & (own < len(table))
        total += np.where(is_own[..., None] | (not mask), table[np.where(is_own, own, 0)], 0)
    return total


@pytest.mark.parametrize(("mask", "off_by", "passes"), [(True, 0, True), (False, 0, False), (True, 1, False)])
def test_the_check_sees_a_missing_mask_and_an_offset(mask: bool, off_by: int, passes: bool) -> None:
    params, batch = inputs()
    want = evaluate("embedding", {}, params, batch)["y"]
    got = shards_of(params, (batch["x"] + off_by) % NUM_IDS, DEVICES, mask)
    assert (error_in_bounds(got, want, np.zeros_like(want)) <= 1) is passes


def test_padding_gives_the_published_sizes_and_zeros(layer: ModuleType) -> None:
    for num_ids, num_rows in ((30522, 30592), (50257, 50304), (128, 128)):  # BERT, GPT-2 in Megatron-LM
        padded = layer.pad_rows(np.ones((num_ids, 2), DTYPES["bfloat16"]), 128)
        assert padded.shape == (num_rows, 2)
        assert padded.dtype == DTYPES["bfloat16"]
        assert np.all(padded[:num_ids] == 1)
        assert np.all(padded[num_ids:] == 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(NUM_IDS, r"^x\[1, 2\] is 10: ids are 0 to 9$"), (-1, r"^x\[1, 2\] is -1: ids are 0 to 9$")],
)
def test_ids_outside_the_vocabulary_are_refused(layer: ModuleType, wrong: int, message: str) -> None:
    _, batch = inputs()
    layer.check_inputs(batch, num_ids=NUM_IDS)
    batch["x"][1, 2] = wrong
    with pytest.raises(ValueError, match=message):
        layer.check_inputs(batch, num_ids=NUM_IDS)


def test_the_ignored_id_is_no_id_unless_it_is_said(layer: ModuleType) -> None:
    ids = np.array([3, -100])
    layer.check_ids("labels", ids, NUM_IDS, ignored=-100)
    with pytest.raises(ValueError, match=r"^labels\[1\] is -100: ids are 0 to 9$"):
        layer.check_ids("labels", ids, NUM_IDS)
    with pytest.raises(ValueError, match=r"^labels\[1\] is -100: ids are 0 to 9 \(or -1: ignored\)$"):
        layer.check_ids("labels", ids, NUM_IDS, ignored=-1)


def test_a_sequence_that_cannot_be_shared_out_is_refused(layer: ModuleType) -> None:
    layer.check_tokens(12, 4)
    with pytest.raises(ValueError, match=r"^tp=4 does not divide the sequence of 10 tokens; 8 or 12 would work$"):
        layer.check_tokens(10, 4)
    with pytest.raises(ValueError, match=r"^tp=4 does not divide the sequence of 3 tokens; 4 would work$"):
        layer.check_tokens(3, 4)
