"""The formula of attention against loops over positions and heads, and its bound against faults."""

from __future__ import annotations

from math import cos, exp, sin, sqrt
from typing import Any

import numpy as np
import pytest

from parity.cases import SUITES, select
from parity.cases.family import CaseError, Selection
from parity.inputs import make_inputs
from parity.reference import evaluate
from parity.reference.attention import rotate, rotations
from parity.tolerance import bounds, error_in_bounds

B, S, D, H, K, E = 2, 4, 5, 6, 3, 4
LLAMA = {"num_heads": H, "num_kv_heads": K, "causal": True, "rope_theta": 100.0}
VARIANTS = [LLAMA, {**LLAMA, "rope_theta": None}, {**LLAMA, "rope_theta": None, "causal": False}]

Arrays = dict[str, np.ndarray]


def inputs(dtype: str, seed: int = 0, bias: bool = True) -> tuple[Arrays, Arrays]:
    shapes = {"q.w": (D, H * E), "k.w": (D, K * E), "v.w": (D, K * E), "o.w": (H * E, D)}
    if bias:
        shapes |= {"q.b": (H * E,), "k.b": (K * E,), "v.b": (K * E,), "o.b": (D,)}
    return make_inputs("attention", LLAMA, shapes, {"x": (B, S, D)}, {}, dtype, "normal", seed)


def turned(head: np.ndarray, position: int, theta: float | None) -> np.ndarray:
    """One head's features at one position, pair by pair."""
    if theta is None:
        return head
    out = np.zeros(E)
    for i in range(E // 2):
        angle = position * theta ** (-2 * i / E)
        out[i] = head[i] * cos(angle) - head[i + E // 2] * sin(angle)
        out[i + E // 2] = head[i + E // 2] * cos(angle) + head[i] * sin(angle)
    return out


def by_loops(params: Arrays, x: np.ndarray, options: dict[str, Any], kv_head_of: Any = lambda h: h // (H // K)) -> Any:
    """y by the definition: each head of each query, a weighted mean over the keys that it sees."""
    q, k, v = (x @ params[f"{name}.w"] + params[f"{name}.b"] for name in "qkv")
    joined = np.zeros((B, S, H * E))
    for b, s, h in np.ndindex(B, S, H):
        own, keys = slice(h * E, h * E + E), slice(kv_head_of(h) * E, kv_head_of(h) * E + E)
        query = turned(q[b, s, own], s, options["rope_theta"])
        seen = range(s + 1 if options["causal"] else S)
        powers = [exp(query @ turned(k[b, t, keys], t, options["rope_theta"]) / sqrt(E)) for t in seen]
        joined[b, s, own] = sum(p * v[b, t, keys] for p, t in zip(powers, seen, strict=True)) / sum(powers)
    return joined @ params["o.w"] + params["o.b"]


@pytest.mark.parametrize("options", VARIANTS)
def test_output_matches_loops_over_heads(options: dict[str, Any]) -> None:
    params, batch = inputs("float64")
    y = evaluate("attention", options, params, batch)["y"]
    assert np.abs(y - by_loops(params, batch["x"], options)).max() < 1e-14
    for wrong in VARIANTS:
        assert (np.abs(y - by_loops(params, batch["x"], wrong)).max() > 1e-2) == (wrong is not options)
    assert np.abs(y - by_loops(params, batch["x"], options, lambda h: h % K)).max() > 1e-2  # the other grouping


@pytest.mark.parametrize("options", VARIANTS)
def test_gradients_match_finite_differences(options: dict[str, Any]) -> None:
    params, batch = inputs("float64")
    got = evaluate("attention", options, params, batch)
    step = 1e-6
    for name, array in {"x": batch["x"], **params}.items():
        for index in list(np.ndindex(array.shape))[::7]:
            kept, loss = array[index], []
            for moved in (kept + step, kept - step):
                array[index] = moved
                loss.append(evaluate("attention", options, params, batch)["loss"])
            array[index] = kept
            assert got[f"{name}.grad"][index] == pytest.approx((loss[0] - loss[1]) / (2 * step), abs=1e-7)
    # A bias of the keys adds the same to all scores of a query, which the softmax takes away; RoPE turns it.
    assert (np.abs(got["k.b.grad"]).max() < 1e-14) == (options["rope_theta"] is None)


def test_fused_weights_match_separate_ones() -> None:
    """Columns by hand: all of q, all of k, all of v; or two heads of q, one of k, one of v, and so on."""
    params, batch = inputs("float64")
    want = evaluate("attention", LLAMA, params, batch)["y"]
    rest = {"o.w": params["o.w"], "o.b": params["o.b"]}
    order = [("q", 0), ("q", 1), ("k", 0), ("v", 0), ("q", 2), ("q", 3), ("k", 1), ("v", 1), ("q", 4), ("q", 5)]
    order += [("k", 2), ("v", 2)]
    for leaf in "wb":
        rest[f"qkv.{leaf}"] = np.concatenate([params[f"{n}.{leaf}"][..., h * E : h * E + E] for n, h in order], -1)
    assert np.abs(evaluate("fused_attention", LLAMA, rest, batch)["y"] - want).max() < 1e-14

    options = {**LLAMA, "num_kv_heads": H}
    wide = {
        **params,
        **{f"{n}.{leaf}": np.roll(params[f"q.{leaf}"], i, -1) for i, n in enumerate("qkv") for leaf in "wb"},
    }
    want = evaluate("attention", options, wide, batch)["y"]
    rest |= {f"qkv.{leaf}": np.stack([wide[f"{n}.{leaf}"] for n in "qkv"], -2) for leaf in "wb"}
    got = evaluate("fused_attention", options, rest, batch)
    assert np.abs(got["y"] - want).max() < 1e-14
    assert got["qkv.w.grad"].shape == (D, 3, H * E)
    # The same bytes read in the other order are another layer.
    other = {**rest, "qkv.w": rest["qkv.w"].reshape(D, -1), "qkv.b": rest["qkv.b"].reshape(-1)}
    assert np.abs(evaluate("fused_attention", options, other, batch)["y"] - want).max() > 1e-2


def test_rotated_scores_depend_on_the_distance_alone() -> None:
    q, k = np.random.default_rng(0).standard_normal((2, E))
    turns = rotations(q, 8, E, 100.0)
    scores = rotate(np.tile(q, (8, 1)), *turns) @ rotate(np.tile(k, (8, 1)), *turns).T
    assert np.allclose(np.diag(scores, 2), scores[0, 2], rtol=0, atol=1e-14)
    assert abs(scores[0, 2] - scores[0, 3]) > 1e-2


class Float32:
    """The formula as NumPy computes it in float32."""

    def load(self, array: np.ndarray) -> np.ndarray:
        return array.astype(np.float32)

    widen = store = load


@pytest.mark.parametrize("seed", range(10))
def test_bound_covers_float32_and_catches_faults(seed: int) -> None:
    options = VARIANTS[1]
    params, batch = inputs("float32", seed)
    want = evaluate("attention", options, params, batch)
    bound = bounds("attention", options, params, batch, "float32", 4, seed)
    got = evaluate("attention", options, params, batch, Float32())
    assert max(error_in_bounds(got[name], want[name], bound[name]) for name in want) < 1
    assert max(error_in_bounds(got[name], want[name], bound[name]) for name in want) > 1e-3
    swapped = {**params, "q.w": np.roll(params["q.w"], E, 1)}  # heads on the wrong device
    rounded = {**params, "k.w": params["k.w"] * np.float32(1 + 2.0**-12)}
    for fault in (swapped, rounded):
        wrong = evaluate("attention", options, fault, batch)
        assert error_in_bounds(wrong["y"], want["y"], bound["y"]) > 1


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_bound_is_small_beside_the_effect_of_one_head(dtype: str) -> None:
    params, batch = inputs(dtype, bias=False)
    want = evaluate("attention", LLAMA, params, batch)
    bound = bounds("attention", LLAMA, params, batch, dtype, 4, 0)
    fault = {**params, "o.w": params["o.w"].copy()}
    fault["o.w"][:E] = 0
    assert error_in_bounds(evaluate("attention", LLAMA, fault, batch)["y"], want["y"], bound["y"]) > 1


def test_heads_that_tp_does_not_divide_are_refused_by_their_number() -> None:
    only = Selection(meshes=({"tp": 4},), numerics=("float64",), variants=("multi_head",))
    with pytest.raises(CaseError, match=r"tp=4 does not divide H=6 of q\.w \[D H\*E@tp\]; H=4 or 8 would work"):
        select([Selection(**{**vars(only), "dims": {"H": 6, "K": 6, "E": 4}})], ["attention"])
    assert len(select([only], ["attention/megatron"])) == 3


def test_every_variant_of_the_standard_suite_exists() -> None:
    names = {case.variant for case in select(SUITES["standard"], ["attention"])}
    assert names == {"multi_head", "grouped_causal_rope"}
