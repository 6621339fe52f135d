"""The formulas of GPT, BERT and Llama against `transformers`: logits, loss and gradients, in float64."""

from __future__ import annotations

from typing import Any

import pytest
from transformers_oracle import OPTIONS, THETA, errors_of, formula, inputs, theirs


def largest_error(model: str, **changes: Any) -> dict[str, float]:
    """The largest error of each tensor, theirs against the formula, in units of its bound."""
    return errors_of(model, theirs(model, *inputs(model), **changes), formula(model)[0])


@pytest.mark.parametrize("model", OPTIONS)
def test_logits_loss_and_every_gradient_are_those_of_transformers(model: str) -> None:
    errors = largest_error(model)
    assert {"y", "logits"} < errors.keys()
    assert {name: error for name, error in errors.items() if not error < 1} == {}


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("models.gpt", {"activation_function": "gelu"}),
        ("models.gpt", {"layer_norm_epsilon": 1.001e-5}),
        ("models.gpt", {"scale_attn_weights": False}),
        ("models.bert", {"hidden_act": "gelu_new"}),
        ("models.bert", {"layer_norm_eps": 1.001e-6}),
        ("models.llama", {"rms_norm_eps": 1.001e-5}),
        ("models.llama", {"hidden_act": "gelu"}),
        ("models.llama", {"rope_parameters": {"rope_type": "default", "rope_theta": THETA * 1.001}}),
    ],
)
def test_another_configuration_of_transformers_is_seen(model: str, change: dict[str, Any]) -> None:
    errors = largest_error(model, **change)
    assert min(errors["logits"], errors["y"]) > 1e4
