"""Checks that a layer's state and plan name exactly its parameters, each with the right shape.

Shapes are written like "D F": a letter stands for one size everywhere, a number for itself, and "H*E" for a product of
which one factor may still be unknown. A name that ends in "?" is optional.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

import numpy as np

from torch_tp.layouts import Plan

NAMED = 8  # at most this many names in a message


def under(name: str, shapes: Mapping[str, str]) -> dict[str, str]:
    """The shapes of a submodule, keyed by their names in the parent module."""
    return {f"{name}.{key}": shape for key, shape in shapes.items()}


def in_row(name: str, shapes: Mapping[str, str], state: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The shapes of name.0 .. name.{L-1}, as many as the state has, at least one."""
    numbers = {key.split(".")[1] for key in state if key.startswith(f"{name}.")}
    every = (under(f"{name}.{number}", shapes) for number in range(max(1, len(numbers))))
    return {key: shape for one in every for key, shape in one.items()}


def check_state(
    state: Mapping[str, np.ndarray], shapes: Mapping[str, str], sizes: Mapping[str, int] | None = None
) -> None:
    """Raises ValueError for a state with a missing parameter, an unknown one, or one of the wrong shape.

    sizes: the letters whose sizes are known, e.g. {"H": num_heads}.
    """
    allowed = {name.rstrip("?"): shape for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if not name.endswith("?") and name not in state:
            raise ValueError(f"the state lacks {name!r} [{_commas(shape)}]; it has {_names(state, name)}")
    for name in state:
        if name not in allowed:
            raise ValueError(f"the state has {name!r}, which is no parameter here; there are {_names(allowed, name)}")
    known = {letter: (size, "the options") for letter, size in (sizes or {}).items()}
    for name, shape in allowed.items():
        if name in state:
            _check_shape(name, tuple(state[name].shape), shape, known)


def check_plan(plan: Plan, plans: Mapping[str, Plan]) -> None:
    """Raises ValueError for a plan with keys that the layer does not have, which would otherwise be ignored."""
    model = next(iter(plans.values()))
    for got, allowed in ((plan.params, model.params), (plan.children, model.children)):
        for name in got:
            if name not in allowed:
                there = f"there are {_names(allowed, name)}" if allowed else "there are none"
                raise ValueError(f"the plan has {name!r}, which matches no parameter; {there}")
        for name in allowed:
            if name not in got:
                raise ValueError(f"the plan lacks {name!r}; it has {_names(got, name)}")


def _check_shape(name: str, got: tuple[int, ...], shape: str, known: dict[str, tuple[int, str]]) -> None:
    words = shape.split()
    if len(words) != len(got):
        raise ValueError(f"{name} has shape {list(got)}, expected [{_commas(shape)}]")
    for dim, (word, size) in enumerate(zip(words, got, strict=True)):
        factors = word.split("*")
        unknown = [factor for factor in factors if not factor.isdecimal() and factor not in known]
        there = math.prod(
            int(factor) if factor.isdecimal() else known[factor][0] for factor in factors if factor not in unknown
        )
        if unknown and size % there == 0:
            known[unknown[0]] = (size // there, name)
        elif unknown:
            fits = f"{size // there * there or there} or {(size // there + 1) * there}"
            raise ValueError(
                f"{name} has shape {list(got)}: dim {dim} is {word}, a multiple of {there}; {fits} would work"
            )
        elif size != there:
            since = [f"{letter}={known[letter][0]} by {known[letter][1]}" for letter in factors if letter in known]
            why = f"{word}={there} ({', '.join(since)})" if since else f"always {there}"
            raise ValueError(f"{name} has shape {list(got)}: dim {dim} is {why}")


def _commas(shape: str) -> str:
    return ", ".join(shape.split())


def _names(names: Iterable[str], like: str) -> str:
    """Some of the names, those most similar to the wanted one first."""
    every = sorted(names)
    near = get_close_matches(like, every, n=NAMED, cutoff=0.5)
    shown = [*near, *(name for name in every if name not in near)][:NAMED]
    return ", ".join(shown) + (f" and {len(every) - NAMED} more" if len(every) > NAMED else "") if every else "none"
