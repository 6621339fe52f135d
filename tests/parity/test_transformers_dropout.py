"""Dropout of GPT and BERT is where `transformers` has it: its own dropouts, with our masks in the order of calls."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers_names import NAMES, as_theirs
from transformers_oracle import OPTIONS, inputs, theirs

from parity.reference import evaluate
from parity.reference.dropout import kept
from parity.tolerance import bounds, error_in_bounds

RATE, SEED, STEP = 0.1, 2026, 77
NUMBERS = [6, 0, 1, 2, 3, 4, 5]  # of what enters two blocks of three
RATES = {
    "models.gpt": ("embd_pdrop", "attn_pdrop", "resid_pdrop"),
    "models.bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
}


class Masks:
    """In the place of `torch.nn.functional.dropout`: the masks by place, each call with the next layer's number."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = iter(numbers)

    def __call__(self, x: torch.Tensor, p: float, training: bool, inplace: bool = False) -> torch.Tensor:
        number = next(self.numbers)
        assert training
        if x.ndim == 4:  # probabilities [B, H, S, T], ours [H, B, 1, S, T]
            B, H, S, T = x.shape
            mask = kept((H, B, 1, S, T), p, SEED, number, STEP)[:, :, 0].swapaxes(0, 1)
        else:
            mask = kept(tuple(x.shape), p, SEED, number, STEP)
        return x * torch.tensor(mask) / (1 - p)


@cache
def formula(model: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Loss and gradients with dropout, and the bounds of what rounding in float64 explains."""
    params, batch = inputs(model)
    options, batch = {**OPTIONS[model], "drop_rate": RATE, "seed": SEED}, {**batch, "step": np.array(STEP)}
    batch["target"] = evaluate(model, options, params, batch)["y"] - 1.0  # for which dy = 1
    return evaluate(model, options, params, batch), bounds(model, options, params, batch, "float64", 1, 0)


def errors(model: str, numbers: list[int], monkeypatch: pytest.MonkeyPatch, **changes: float) -> dict[str, float]:
    """Of theirs beside the formula, in bounds."""
    masks, rates = Masks(numbers), dict.fromkeys(RATES[model], RATE)
    monkeypatch.setattr(torch.nn.functional, "dropout", masks)
    got: dict[str, Any] = theirs(model, *inputs(model), **(rates | changes))
    assert next(masks.numbers, None) is None, "as many layers drop out as ours"
    want, bound = formula(model)
    found = {"y": error_in_bounds(got["y"], want["y"], bound["y"])}
    for name, own in NAMES[model].items():
        found[name] = error_in_bounds(got[name], *(as_theirs(model, own, arrays, ".grad") for arrays in (want, bound)))
    return found


@pytest.mark.parametrize("model", RATES)
def test_loss_and_every_gradient_with_dropout_are_those_of_transformers(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = errors(model, NUMBERS, monkeypatch)
    assert {name: error for name, error in found.items() if not error < 1} == {}


@pytest.mark.parametrize(("model", "rate"), [(model, rate) for model, rates in RATES.items() for rate in rates])
def test_another_rate_is_seen(model: str, rate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert errors(model, NUMBERS, monkeypatch, **{rate: 0.2})["y"] > 1e4


@pytest.mark.parametrize("model", RATES)
def test_masks_of_another_layer_are_seen(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert errors(model, [6, 0, 1, 2, 0, 1, 2], monkeypatch)["y"] > 1e4
