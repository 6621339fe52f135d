"""Language models: from ids and labels to the mean cross entropy."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.reference.activations import ACTIVATIONS
from parity.reference.block import block, child
from parity.reference.cross_entropy import cross_entropy
from parity.reference.dropout import drop
from parity.reference.formula import Arrays, Options
from parity.reference.linear import affine
from parity.reference.lookup import take_rows
from parity.reference.norm import normalise
from parity.reference.tied import head


def run_blocks(params: Arrays, h: Any, batch: Arrays, options: Options) -> Any:
    """The blocks "blocks.0" .. in order.

    With a `step` h is dropped out before them, as the layer 3 L, and in block i as the layers 3 i to 3 i + 2.
    """
    blocks, step = child(params, "blocks"), {key: batch[key] for key in ("step",) if key in batch}
    num_blocks = len({name.partition(".")[0] for name in blocks})
    if step:
        h = drop(h, options["drop_rate"], options["seed"], 3 * num_blocks, batch["step"])
    for i in range(num_blocks):
        h = block(child(blocks, str(i)), {"x": h, **step}, {**options, "number": i})
    return h


def normed(params: Arrays, h: Any, options: Options, name: str = "norm") -> Any:
    """The model's norm of this name."""
    return normalise(h, params, options["norm_kind"], options["eps"], f"{name}.")


def positioned(params: Arrays, ids: np.ndarray) -> Any:
    """table[x] + positions, [B, S] -> [B, S, D]."""
    positions = take_rows(params["positions.table"], np.arange(ids.shape[1]))
    return take_rows(params["tied.embed.table"], ids) + positions


def gpt_logits(params: Arrays, batch: Arrays, options: Options) -> Any:
    """norm(blocks(table[x] + positions)) table^T (Radford et al. 2019); the ids x are [B, S], the logits [B, S, V]."""
    h = normed(params, run_blocks(params, positioned(params, batch["x"]), batch, options), options)
    return head(h, params["tied.embed.table"])


def bert_logits(params: Arrays, batch: Arrays, options: Options) -> Any:
    """head_norm(act(blocks(norm(table[x] + positions)) w + b)) table^T + b_vocab (Devlin et al., 1810.04805)."""
    h = run_blocks(params, normed(params, positioned(params, batch["x"]), options), batch, options)
    h = normed(params, ACTIVATIONS[options["activation"]](affine(h, params, "head.")), options, "head_norm")
    return head(h, params["tied.embed.table"]) + params["vocab.b"]


def llama_logits(params: Arrays, batch: Arrays, options: Options) -> Any:
    """norm(blocks(table[x])) w_head (Touvron et al., 2302.13971); the ids x are [B, S], the logits [B, S, V]."""
    h = take_rows(params["embed.table"], batch["x"])
    return affine(normed(params, run_blocks(params, h, batch, options), options), params, "head.")


def gpt(params: Arrays, batch: Arrays, options: Options) -> Any:
    """Mean cross entropy of `gpt_logits` over the labels [B, S], those of -100 left out; a scalar."""
    logits = gpt_logits(params, batch, options)
    return cross_entropy({}, {"x": logits, "labels": batch["labels"]}, options)


def bert(params: Arrays, batch: Arrays, options: Options) -> Any:
    """As `gpt`, of `bert_logits`."""
    logits = bert_logits(params, batch, options)
    return cross_entropy({}, {"x": logits, "labels": batch["labels"]}, options)


def llama(params: Arrays, batch: Arrays, options: Options) -> Any:
    """As `gpt`, of `llama_logits`."""
    logits = llama_logits(params, batch, options)
    return cross_entropy({}, {"x": logits, "labels": batch["labels"]}, options)
