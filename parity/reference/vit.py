"""Vision transformer on gridded fields."""

from __future__ import annotations

from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.tracer import getval

from parity.arithmetic import ModelArray
from parity.reference.cross_entropy import cross_entropy
from parity.reference.formula import Arrays, Options
from parity.reference.linear import affine
from parity.reference.models import normed, run_blocks
from parity.reference.precision import widen


def patches(x: Any, P: int) -> Any:
    """[B, C, I, J] -> [B, I/P * J/P, C*P*P], row after row of patches of P x P. Raises ValueError if P does not fit."""
    B, C, I, J = x.shape
    if I % P or J % P:
        raise ValueError(f"patches of {P} x {P} do not tile the grid of {I} x {J}: P has to divide both")
    cut = anp.transpose(anp.reshape(x, (B, C, I // P, P, J // P, P)), (0, 2, 4, 1, 3, 5))
    return anp.reshape(cut, (B, (I // P) * (J // P), C * P * P))


def latitude_weights(I: int) -> np.ndarray:
    """cos(latitude) / mean cos of I rows of cells from pole to pole, whose centres are at 90 - (i + 1/2) 180 / I."""
    cosine = np.cos(np.deg2rad(90 - (np.arange(I) + 0.5) * 180 / I))
    weights: np.ndarray = cosine / cosine.mean()
    return weights


def latitude_error(prediction: Any, truth: Any, P: int) -> Any:
    """Mean over [B, C, I, J] of w_i (prediction - truth)^2; prediction in patches [B, T, C*P*P]."""
    error = widen(prediction) - patches(widen(truth), P)
    table = np.broadcast_to(latitude_weights(truth.shape[2])[:, None], truth.shape[1:])
    like = getval(error)
    weights = like.rules.constant(table) if isinstance(like, ModelArray) else table
    return anp.sum(patches(weights[None], P) * anp.square(error)) / float(truth.size)


def vit_features(params: Arrays, batch: Arrays, options: Options) -> Any:
    """norm(blocks(patches(x) w + b + positions)) (Dosovitskiy et al., 2010.11929), without a class token; [B, T, D]."""
    h = affine(patches(batch["x"], options["patch"]), params, "embed.") + params["positions.table"]
    return normed(params, run_blocks(params, h, batch, options), options)


def vit(params: Arrays, batch: Arrays, options: Options) -> Any:
    """A scalar: `latitude_error` of features w + b against the truth [B, C, I, J]; or, for labels [B], the mean cross
    entropy of mean_T(features) w + b.
    """
    h = vit_features(params, batch, options)
    if "truth" in batch:
        return latitude_error(affine(h, params, "head."), batch["truth"], options["patch"])
    pooled = anp.sum(h, axis=1, keepdims=True) / float(h.shape[1])
    logits = affine(pooled, params, "head.")
    tokens = {"x": logits, "labels": batch["labels"][:, None]}
    return cross_entropy({}, tokens, {"num_ids": options["num_classes"]})
