"""GPT, BERT and Llama beside those of `transformers`: logits, loss, gradients, same weights, in float64.

First the formulas, then the modules of both frameworks, in shards on real devices and gathered.

`transformers` casts to float32 inside (norms, softmax, RoPE, loss), whatever the dtype of the weights. Here those casts
are to float64, else nothing below 1e-6 could be told apart; its code is otherwise as it is.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sharded_worker import AT

from parity.files_contract import load_arrays, save_arrays
from parity.inputs import make_inputs
from parity.reference import Arithmetic, Arrays, evaluate
from parity.reference.models import bert_logits, gpt_logits, llama_logits
from parity.tolerance import bounds, bounds_of, error_in_bounds

transformers = pytest.importorskip("transformers", reason="needs the extra: pip install 'tp-parity[oracle]'")

from transformers.models.bert import modeling_bert  # noqa: E402
from transformers.models.gpt2 import modeling_gpt2  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402

B, S, D, H, K, E, F, V, C, NUM_BLOCKS = 2, 8, 24, 4, 4, 6, 48, 30, 10, 2
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
LOGITS = {"models.bert": bert_logits, "models.gpt": gpt_logits, "models.llama": llama_logits}
OPTIONS = {"models.bert": BERT, "models.gpt": GPT, "models.llama": LLAMA}


class WideTorch:
    """The module torch, in which float32 and float, its other name, are float64."""

    float32 = float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (modeling_bert, modeling_gpt2, modeling_llama):
        monkeypatch.setattr(module, "torch", WideTorch())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


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


def gpt2_names() -> dict[str, str | tuple[str, ...]]:
    """Their name -> ours, or ours side by side; both have [in, out]."""
    names: dict[str, str | tuple[str, ...]] = {
        "transformer.wte.weight": "tied.embed.table",
        "transformer.wpe.weight": "positions.table",
        "transformer.ln_f.weight": "norm.scale",
        "transformer.ln_f.bias": "norm.b",
    }
    for i in range(NUM_BLOCKS):
        theirs, ours = f"transformer.h.{i}", f"blocks.{i}"
        for norm in (1, 2):
            names[f"{theirs}.ln_{norm}.weight"] = f"{ours}.norm{norm}.scale"
            names[f"{theirs}.ln_{norm}.bias"] = f"{ours}.norm{norm}.b"
        for end, leaf in (("weight", "w"), ("bias", "b")):
            names[f"{theirs}.attn.c_attn.{end}"] = tuple(f"{ours}.attention.{name}.{leaf}" for name in "qkv")
            names[f"{theirs}.attn.c_proj.{end}"] = f"{ours}.attention.o.{leaf}"
            names[f"{theirs}.mlp.c_fc.{end}"] = f"{ours}.mlp.up.{leaf}"
            names[f"{theirs}.mlp.c_proj.{end}"] = f"{ours}.mlp.down.{leaf}"
    return names


def bert_names() -> dict[str, str | tuple[str, ...]]:
    """Their name -> ours; their linears have [out, in]. The vectors of the two segments are apart: see `theirs`."""
    names: dict[str, str | tuple[str, ...]] = {
        "bert.embeddings.word_embeddings.weight": "tied.embed.table",
        "bert.embeddings.position_embeddings.weight": "positions.table",
        "cls.predictions.bias": "vocab.b",
    }
    affine = {"cls.predictions.transform.dense": "head"}
    norms = {"bert.embeddings.LayerNorm": "norm", "cls.predictions.transform.LayerNorm": "head_norm"}
    for i in range(NUM_BLOCKS):
        theirs, ours = f"bert.encoder.layer.{i}", f"blocks.{i}"
        parts = {"q": "query", "k": "key", "v": "value"}
        affine |= {f"{theirs}.attention.self.{long}": f"{ours}.attention.{name}" for name, long in parts.items()}
        affine[f"{theirs}.attention.output.dense"] = f"{ours}.attention.o"
        affine[f"{theirs}.intermediate.dense"] = f"{ours}.mlp.up"
        affine[f"{theirs}.output.dense"] = f"{ours}.mlp.down"
        norms[f"{theirs}.attention.output.LayerNorm"] = f"{ours}.norm1"
        norms[f"{theirs}.output.LayerNorm"] = f"{ours}.norm2"
    for pairs, leaf in ((affine, "w"), (norms, "scale")):
        names |= {f"{theirs}.weight": f"{ours}.{leaf}" for theirs, ours in pairs.items()}
        names |= {f"{theirs}.bias": f"{ours}.b" for theirs, ours in pairs.items()}
    return names


def llama_names() -> dict[str, str | tuple[str, ...]]:
    """Their name -> ours; their linears have [out, in]."""
    names: dict[str, str | tuple[str, ...]] = {
        "model.embed_tokens.weight": "embed.table",
        "model.norm.weight": "norm.scale",
        "lm_head.weight": "head.w",
    }
    for i in range(NUM_BLOCKS):
        theirs, ours = f"model.layers.{i}", f"blocks.{i}"
        names[f"{theirs}.input_layernorm.weight"] = f"{ours}.norm1.scale"
        names[f"{theirs}.post_attention_layernorm.weight"] = f"{ours}.norm2.scale"
        names |= {f"{theirs}.self_attn.{name}_proj.weight": f"{ours}.attention.{name}.w" for name in "qkvo"}
        names |= {f"{theirs}.mlp.{name}_proj.weight": f"{ours}.mlp.{name}.w" for name in ("gate", "up", "down")}
    return names


NAMES = {"models.bert": bert_names(), "models.gpt": gpt2_names(), "models.llama": llama_names()}


def as_theirs(model: str, ours: str | tuple[str, ...], arrays: Mapping[str, np.ndarray], end: str = "") -> np.ndarray:
    names = (ours,) if isinstance(ours, str) else ours
    array = np.concatenate([arrays[name + end] for name in names], -1)
    return array.T if model != "models.gpt" and names[0].endswith(".w") else array


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


def theirs(model: str, params: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray], **changes: Any) -> dict:
    """Logits, loss, and the gradients of the loss by their names. Causal models shift the labels themselves."""
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


@cache
def inputs(model: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The last label of a row has no token after it in theirs: ignored. The target is y - 1, for which dy = 1."""
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
    """Logits, loss and gradients, and the bounds of what rounding in float64 explains."""
    params, batch = inputs(model)
    logits = partial(logits_of, model, params, batch)
    want = evaluate(model, OPTIONS[model], params, batch) | logits(None)
    bound = bounds(model, OPTIONS[model], params, batch, "float64", 1, 0) | bounds_of(logits, "float64", 1, 0)
    return want, bound


def errors_of(model: str, got: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of theirs beside ours, in bounds."""
    _, bound = formula(model)
    errors = {name: error_in_bounds(got[name], ours[name], bound[name]) for name in ("y", "logits")}
    for name, own in NAMES[model].items():
        pair = (as_theirs(model, own, arrays, ".grad") for arrays in (ours, bound))
        errors[name] = error_in_bounds(got[name], *pair)
    return errors


def largest_error(model: str, **changes: Any) -> dict[str, float]:
    """Of theirs beside the formula, in bounds."""
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


# ------------------------------------------------------------------------------------------------- modules, in shards

PADDED_V = 32  # rows of the tables, of which V are ids: 4 divides it
VOCABULARY = {"tied.embed.table": 0, "embed.table": 0, "vocab.b": 0}  # the dim, by parameter; Llama's head.w beside


def vocabulary_dim(model: str, name: str) -> int | None:
    return 1 if (model, name) == ("models.llama", "head.w") else VOCABULARY.get(name)


def padded(model: str, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    widths = {name: [(0, 0)] * array.ndim for name, array in params.items()}
    for name, width in widths.items():
        if (dim := vocabulary_dim(model, name)) is not None:
            width[dim] = (0, PADDED_V - V)
    return {name: np.pad(array, widths[name]) for name, array in params.items()}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both frameworks at once, each in one group for all models and tp degrees."""
    directory = tmp_path_factory.mktemp("sharded")
    (directory / "options.json").write_text(json.dumps(OPTIONS))
    for model in OPTIONS:
        params, batch = inputs(model)
        named = {f"params.{name}": array for name, array in padded(model, params).items()}
        save_arrays(directory / f"{model}.safetensors", named | batch)
    flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    port = random.randrange(15_000, 30_000)
    processes = []
    for framework, ranks in (("torch", 4), ("jax", 1)):
        place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port + ranks)}
        for rank in range(ranks):
            environment = {**os.environ, **place, "RANK": str(rank), "OMP_NUM_THREADS": "1", "XLA_FLAGS": flags}
            command = [sys.executable, str(Path(__file__).with_name("sharded_worker.py")), framework, str(directory)]
            with (directory / f"{framework}{rank}.err").open("w") as log:
                processes.append(subprocess.Popen(command, env=environment, stderr=log))
    try:
        codes = [process.wait(timeout=250) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert set(codes) == {0}, "\n".join(path.read_text()[-1500:] for path in directory.glob("*.err"))
    return directory


def gathered(directory: Path, framework: str, model: str, tp: int) -> dict[str, np.ndarray]:
    """Without the padding, whose gradients are 0 and whose logits nobody asks for."""
    found = load_arrays(directory / f"{framework}.{model}.tp{tp}.safetensors")
    found["logits"] = found["logits"][..., :V]
    for name in NAMES[model].values():
        dim = vocabulary_dim(model, name) if isinstance(name, str) else None
        if dim is not None:
            found[f"{name}.grad"], padding = np.split(found[f"{name}.grad"], [V], dim)
            assert padding.shape[dim] == PADDED_V - V
            assert not padding.any()
    return found


@pytest.mark.parametrize("tp", AT)
@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("model", OPTIONS)
def test_modules_in_shards_are_those_of_transformers(sharded: Path, model: str, framework: str, tp: int) -> None:
    """Either may be one bound off the formula."""
    got = theirs(model, *inputs(model))
    errors = errors_of(model, got, gathered(sharded, framework, model, tp))
    assert {name: error for name, error in errors.items() if not error < 2} == {}


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("models.gpt", {"layer_norm_epsilon": 1.001e-5}),
        ("models.bert", {"hidden_act": "gelu_new"}),
        ("models.llama", {"rms_norm_eps": 1.001e-5}),
    ],
)
def test_modules_in_shards_are_not_those_of_another_configuration(
    sharded: Path, model: str, change: dict[str, Any]
) -> None:
    got = theirs(model, *inputs(model), **change)
    for framework in ("torch", "jax"):
        errors = errors_of(model, got, gathered(sharded, framework, model, 4))
        assert min(errors["logits"], errors["y"]) > 1e4
