"""The names of the parameters in `transformers`, and which of our parameters each is made of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NUM_BLOCKS = 2


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
    """Our array, or ours side by side, in the orientation of `transformers`."""
    names = (ours,) if isinstance(ours, str) else ours
    array = np.concatenate([arrays[name + end] for name in names], -1)
    return array.T if model != "models.gpt" and names[0].endswith(".w") else array
