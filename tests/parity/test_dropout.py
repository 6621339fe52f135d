"""Masks by place: the same bits from NumPy and both frameworks, from every shard of every tp degree."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from jax.extend.random import threefry_2x32

from parity.inputs import make_inputs
from parity.reference import dropout as reference
from parity.reference import evaluate
from parity.tolerance import bounds, error_in_bounds

# Random123's kat_vectors: key, counter, result.
PUBLISHED = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]
SHAPE = (12, 4, 24)
RATE, SEED, LAYER, STEP = 0.3, 2026, 5, 77
Masks = Callable[[int | None, int], np.ndarray]


@pytest.fixture(params=["torch_tp", "jax_tp"])
def layer(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"{request.param}.dropout")


def torch_masks(dim: int | None, tp: int, step: int = STEP) -> np.ndarray:
    """The masks of all devices' shards, put together as the shards of x are."""
    from torch_tp.dropout import kept, make_draw

    draw = make_draw(RATE, SEED, LAYER)
    parts = torch.zeros(SHAPE).chunk(tp, dim) if dim is not None else [torch.zeros(SHAPE)]
    axes = [SimpleNamespace(get_local_rank=lambda rank=rank: rank, size=lambda: tp) for rank in range(tp)]
    masks = [kept(x, torch.tensor(step), draw, dim, axis) for x, axis in zip(parts, axes, strict=False)]
    return torch.cat(masks, dim or 0).numpy()


def jax_masks(dim: int | None, tp: int, step: int = STEP) -> np.ndarray:
    """The same: each device is one of a vmapped axis."""
    from jax_tp.dropout import kept, make_draw

    draw = make_draw(RATE, SEED, LAYER)
    parts = np.stack(np.split(np.zeros(SHAPE, np.float32), tp, dim or 0)) if dim is not None else np.zeros((1, *SHAPE))
    draw_all = jax.jit(jax.vmap(lambda x, step: kept(x, step, draw, dim, "tp"), (0, None), axis_name="tp"))
    masks = draw_all(parts, np.int32(step))
    return np.concatenate(list(masks), dim or 0)


MASKS = {"torch_tp": torch_masks, "jax_tp": jax_masks}


@pytest.mark.parametrize(("key", "counter", "result"), PUBLISHED)
def test_the_generator_gives_the_published_words(key: tuple, counter: tuple, result: tuple) -> None:
    assert tuple(int(word) for word in reference.threefry(key, counter)) == result
    from jax_tp.dropout import threefry as in_jax
    from torch_tp.dropout import threefry as in_torch

    assert (
        tuple(int(word) for word in in_torch(tuple(map(torch.tensor, key)), tuple(map(torch.tensor, counter))))
        == result
    )
    words = [tuple(map(jax.numpy.uint32, pair)) for pair in (key, counter)]
    assert tuple(int(word) for word in in_jax(*words)) == result


def test_the_generator_is_that_of_jax() -> None:
    counts = np.arange(100, dtype=np.uint32)
    ours = reference.threefry((SEED, LAYER), (counts[:50], counts[50:]))
    theirs = threefry_2x32(np.array([SEED, LAYER], np.uint32), counts)
    assert np.array_equal(np.concatenate(ours).astype(np.uint32), theirs)


@pytest.mark.parametrize("package", MASKS)
@pytest.mark.parametrize("tp", [1, 2, 3, 4])
@pytest.mark.parametrize("dim", [None, 0, 2])
def test_shards_of_every_tp_have_the_bits_of_the_whole_mask(package: str, dim: int | None, tp: int) -> None:
    want = reference.kept(SHAPE, RATE, SEED, LAYER, STEP)
    assert np.array_equal(MASKS[package](dim, tp), want)
    assert not np.array_equal(MASKS[package](dim, tp, STEP + 1), want)


@pytest.mark.parametrize("package", MASKS)
@pytest.mark.parametrize("dim", [1])
def test_the_sequence_may_be_cut_too(package: str, dim: int) -> None:
    assert np.array_equal(MASKS[package](dim, 4), reference.kept(SHAPE, RATE, SEED, LAYER, STEP))


@pytest.mark.parametrize("package", MASKS)
def test_masks_of_local_places_are_those_of_no_whole(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = importlib.import_module(f"{package}.dropout")
    original = layer.positions
    monkeypatch.setattr(layer, "positions", lambda x, dim, axis: original(x, None, None))
    got = MASKS[package](2, 4)
    assert np.array_equal(got[..., :6], got[..., 6:12]), "the same to every shard"
    assert not np.array_equal(got, reference.kept(SHAPE, RATE, SEED, LAYER, STEP))


def test_masks_drop_as_many_as_they_should_and_no_two_are_alike() -> None:
    shape = (64, 32, 50)
    one = reference.kept(shape, RATE, SEED, LAYER, STEP)
    count, spread = one.size * (1 - RATE), (one.size * RATE * (1 - RATE)) ** 0.5
    assert abs(one.sum() - count) < 5 * spread
    for other in ((SEED + 1, LAYER, STEP), (SEED, LAYER + 1, STEP), (SEED, LAYER, STEP + 1), (LAYER, SEED, STEP)):
        both = (one & reference.kept(shape, RATE, *other)).sum()
        assert abs(both - one.size * (1 - RATE) ** 2) < 5 * spread, other
    for shift in ((one[1:], one[:-1]), (one[:, 1:], one[:, :-1]), (one[..., 1:], one[..., :-1])):
        both = (shift[0] & shift[1]).sum()
        assert abs(both - shift[0].size * (1 - RATE) ** 2) < 5 * spread


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_bounds_see_one_element_that_is_kept_and_should_not_be(dtype: str) -> None:
    options = {"rate": RATE, "seed": SEED, "layer": LAYER}
    params, batch = make_inputs("dropout", options, {}, {"x": SHAPE, "step": ()}, {"step": 9}, dtype, "normal", 0)
    want = evaluate("dropout", options, params, batch)
    bound = bounds("dropout", options, params, batch, dtype, 4, 0)
    kept = reference.kept(SHAPE, RATE, SEED, LAYER, int(batch["step"]))
    x = batch["x"].astype(np.float64)
    assert np.array_equal(want["y"], np.where(kept, x * (1 / (1 - RATE)), 0))
    assert np.all((want["x.grad"] == 0) == ~kept)
    where = tuple(np.argwhere(~kept)[0])
    got = want["y"].copy()
    got[where] = x[where] / (1 - RATE)
    assert error_in_bounds(want["y"], want["y"], bound["y"]) <= 1
    assert error_in_bounds(got, want["y"], bound["y"]) > 1


def test_what_cannot_be_drawn_is_refused(layer: ModuleType) -> None:
    assert layer.make_draw(0.0, 0, 0) is None
    for rate in (1.0, -0.1):
        with pytest.raises(ValueError, match=rf"^drop rate {rate}: expected 0 <= rate < 1$"):
            layer.make_draw(rate, 0, 0)
    with pytest.raises(ValueError, match=r"^seed=-1: expected a number of 32 bits, 0 to 4294967295$"):
        layer.make_draw(0.5, -1, 0)
    with pytest.raises(ValueError, match=r"^layer=4294967296: expected a number of 32 bits, 0 to 4294967295$"):
        layer.make_draw(0.5, 0, 2**32)
    with pytest.raises(ValueError, match=r"^step=-1: expected a number of 32 bits, 0 to 4294967295$"):
        layer.check_inputs({"step": np.array(-1)}, rate=0.5, seed=0, layer=0)
