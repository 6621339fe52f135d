"""GPT-2, BERT and Llama of `transformers` as the oracle of our models, in float64, with the same weights.

`transformers` casts to float32 inside (norms, softmax, RoPE, loss), whatever the dtype of the weights. Here those casts
go to float64, or differences below 1e-6 would be lost; its code is otherwise unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers_names import NAMES, NUM_BLOCKS, as_theirs

from parity.inputs import make_inputs
from parity.reference import Arithmetic, Arrays, evaluate
from parity.reference.models import bert_logits, gpt_logits, llama_logits
from parity.tolerance import bounds, bounds_of, error_in_bounds

transformers = pytest.importorskip("transformers", reason="needs the extra: pip install 'tp-parity[oracle]'")

from transformers.models.bert import modeling_bert  # noqa: E402
from transformers.models.gpt2 import modeling_gpt2  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402

B, S, D, H, K, E, F, V, C = 2, 8, 24, 4, 4, 6, 48, 30, 10
THETA = 10000.0
GPT = {
    "num_heads": H,
    "num_kv_heads": H,
    "causal": True,
    "rope_theta": None,
    "norm_kind": "layer_norm",
    "eps": 1e-5,
    "activation": "gelu_tanh",
    "num_ids": V,
}
LLAMA = {
    **GPT,
    "num_heads": 2 * K,
    "num_kv_heads": K,
    "rope_theta": THETA,
    "norm_kind": "rms_norm",
    "activation": "swiglu",
}
BERT = {**GPT, "causal": False, "activation": "gelu_erf", "is_post_norm": True, "eps": 1e-12}
OPTIONS = {"models.bert": BERT, "models.gpt": GPT, "models.llama": LLAMA}


class WideTorch:
    """The module torch, with float64 in place of float32 and of its alias float."""

    float32 = float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def in_float64() -> Iterator[None]:
    """Within this context, code of `transformers` that casts to float32 casts to float64."""
    with ExitStack() as patches:
        for module in (modeling_bert, modeling_gpt2, modeling_llama):
            patches.enter_context(patch.object(module, "torch", WideTorch()))
        patches.enter_context(patch.object(torch.Tensor, "float", torch.Tensor.double))
        yield


def shapes(model: str) -> dict[str, tuple[int, ...]]:
    h, k = OPTIONS[model]["num_heads"], OPTIONS[model]["num_kv_heads"]
    weights = {"q": (D, h * E), "k": (D, k * E), "v": (D, k * E), "o": (h * E, D)}
    block = {f"attention.{name}.w": shape for name, shape in weights.items()}
    block |= {"norm1.scale": (D,), "norm2.scale": (D,), "mlp.up.w": (D, F), "mlp.down.w": (F, D)}
    if model != "models.llama":
        block |= {name.replace(".w", ".b"): shape[1:] for name, shape in block.items() if name.endswith(".w")}
        block |= {"norm1.b": (D,), "norm2.b": (D,)}
        whole = {"tied.embed.table": (V, D), "positions.table": (C, D), "norm.scale": (D,), "norm.b": (D,)}
        if model == "models.bert":
            whole |= {"head.w": (D, D), "head.b": (D,), "head_norm.scale": (D,), "head_norm.b": (D,), "vocab.b": (V,)}
    else:
        block |= {"mlp.gate.w": (D, F)}
        whole = {"embed.table": (V, D), "norm.scale": (D,), "head.w": (D, V)}
    return whole | {f"blocks.{i}.{name}": shape for i in range(NUM_BLOCKS) for name, shape in block.items()}


def make_model(model: str, **changes: Any) -> torch.nn.Module:
    if model == "models.gpt":
        sizes = {"n_embd": D, "n_head": H, "n_inner": F, "n_layer": NUM_BLOCKS, "n_positions": C, "vocab_size": V}
        none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
        config = transformers.GPT2Config(**(sizes | none | changes), attn_implementation="eager")
        return transformers.GPT2LMHeadModel(config).double()
    if model == "models.bert":
        sizes = {"hidden_size": D, "num_attention_heads": H, "intermediate_size": F, "num_hidden_layers": NUM_BLOCKS}
        # By default the id 0 is padding, and its vector gets no gradient by the lookup.
        lengths = {"max_position_embeddings": C, "vocab_size": V, "pad_token_id": None}
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = transformers.BertConfig(**(sizes | lengths | none | changes), attn_implementation="eager")
        return transformers.BertForMaskedLM(config).double()
    sizes = {"hidden_size": D, "intermediate_size": F, "num_hidden_layers": NUM_BLOCKS, "vocab_size": V, "head_dim": E}
    heads = {"num_attention_heads": 2 * K, "num_key_value_heads": K, "rms_norm_eps": 1e-5}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": THETA}}
    config = transformers.LlamaConfig(**(sizes | heads | rope | changes), attn_implementation="eager")
    return transformers.LlamaForCausalLM(config).double()


@in_float64()
def theirs(model: str, params: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray], **changes: Any) -> dict:
    """Logits, loss, and the gradients of the loss under the names of `transformers`.

    Causal models of `transformers` shift the labels themselves.
    """
    module = make_model(model, **changes)
    if model == "models.bert":
        torch.nn.init.zeros_(module.bert.embeddings.token_type_embeddings.weight)
    state = {name: torch.tensor(as_theirs(model, ours, params)) for name, ours in NAMES[model].items()}
    left = module.load_state_dict(state, strict=False)
    segments = "bert.embeddings.token_type_embeddings.weight"  # ours are part of the positions
    tied = {"lm_head.weight", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert set(left.missing_keys) <= {segments, *tied}
    assert not left.unexpected_keys
    labels = batch["labels"]
    if model != "models.bert":
        labels = np.concatenate([np.full((B, 1), -100), labels[:, :-1]], 1)
    done = module(input_ids=torch.tensor(batch["x"]), labels=torch.tensor(labels))
    done.loss.backward()
    grads = {name: param.grad.numpy() for name, param in module.named_parameters() if name != segments}
    assert grads.keys() == NAMES[model].keys()
    return {"logits": done.logits.detach().numpy(), "y": done.loss.detach().numpy(), **grads}


LOGITS = {"models.bert": bert_logits, "models.gpt": gpt_logits, "models.llama": llama_logits}


@cache
def inputs(model: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters and batch. The last label of a row is ignored: theirs has no token to predict it from. With the target
    y - 1 the gradient of the loss by y is 1.
    """
    ids = {"x": V, "labels": V}
    given = {"x": (B, S), "labels": (B, S)}
    params, batch = make_inputs(model, OPTIONS[model], shapes(model), given, ids, "float64", "normal", 0)
    batch["labels"][:, -1] = batch["labels"][0, 2] = -100
    batch["target"] = evaluate(model, OPTIONS[model], params, batch)["y"] - 1.0
    return params, batch


def logits_of(model: str, params: Arrays, batch: Arrays, arithmetic: Arithmetic | None) -> dict[str, np.ndarray]:
    leaves = {name: arithmetic.load(array) for name, array in params.items()} if arithmetic else params
    return {"logits": np.array(LOGITS[model](leaves, batch, OPTIONS[model]), np.float64)}


@cache
def formula(model: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Logits, loss and gradients by our formula, and how far rounding in float64 may move each."""
    params, batch = inputs(model)
    logits = partial(logits_of, model, params, batch)
    want = evaluate(model, OPTIONS[model], params, batch) | logits(None)
    bound = bounds(model, OPTIONS[model], params, batch, "float64", 1, 0) | bounds_of(logits, "float64", 1, 0)
    return want, bound


def errors_of(model: str, got: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The largest error of each tensor, theirs against ours, in units of its bound."""
    _, bound = formula(model)
    errors = {name: error_in_bounds(got[name], ours[name], bound[name]) for name in ("y", "logits")}
    for name, own in NAMES[model].items():
        pair = (as_theirs(model, own, arrays, ".grad") for arrays in (ours, bound))
        errors[name] = error_in_bounds(got[name], *pair)
    return errors
