"""`bad_input_worker.py torch|jax`: what each bad state, plan or input of `QUESTIONS` is answered with, as JSON.

One device: what is refused here is refused before anything is placed.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from parity.cases import FAMILIES
from parity.cases.family import Selection, cases_of
from parity.inputs import make_inputs

# (layer, plan, variant)
LAYERS = (
    ("linear", "column_parallel", "bias"),
    ("mlp", "megatron", "gelu_erf"),
    ("swiglu", "megatron", "separate"),
    ("swiglu", "sequence_parallel", "packed_bias"),
    ("attention", "megatron", "grouped_causal_rope"),
    ("fused_attention", "contiguous", "contiguous"),
    ("fused_attention", "per_head", "per_head_grouped_causal_rope"),
    ("norm", "replicated", "layer_norm"),
    ("norm", "replicated", "rms_norm"),
    ("embedding", "vocab_parallel", "padded"),
    ("tied", "vocab_parallel", "one_table"),
    ("block", "megatron", "gpt"),
    ("block", "sequence_parallel", "llama"),
    ("models.gpt", "megatron", "gpt2"),
    ("models.bert", "megatron", "masked_lm"),
    ("models.llama", "megatron", "llama3"),
    ("models.vit", "field", "weather"),
)
State = dict[str, np.ndarray]


def grown(name: str, dim: int, by: int = 1) -> Callable[[State], State]:
    """The state with one parameter larger in one dim."""

    def change(state: State) -> State:
        widths = [(0, 0)] * state[name].ndim
        widths[dim] = (0, by)
        return {**state, name: np.pad(state[name], widths)}

    return change


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {key.replace(old, new, 1): array for key, array in state.items()}


# (name, layer, how its state is changed, what the answer must be)
SHAPES: tuple[tuple[str, int, Callable[[State], State], str], ...] = (
    ("bias", 0, grown("b", 0), "b has shape [37]: dim 0 is F=36 (F=36 by w)"),
    ("hidden", 1, grown("down.w", 0), "down.w has shape [49, 24]: dim 0 is F=48 (F=48 by up.w)"),
    ("packed", 3, grown("gate_up.w", 1), "gate_up.w has shape [24, 3, 48]: dim 1 is always 2"),
    ("keys", 4, grown("k.w", 1), "k.w has shape"),
    ("heads", 4, grown("q.w", 1), "a multiple of"),
    ("dims", 0, lambda state: {**state, "w": state["w"][None]}, "w has shape [1, 24, 36], expected [D, F]"),
    ("norm of a block", 11, grown("norm2.scale", 0), "norm2.scale has shape [21]: dim 0 is D=20 (D=20 by norm1.scale)"),
    ("block of a model", 13, grown("blocks.1.mlp.up.w", 1), "blocks.1.mlp.up.w has shape"),
    ("gap", 13, renamed("blocks.1.", "blocks.2."), "the state lacks 'blocks.1."),
    ("spelling", 11, renamed("attention.q.w", "attenton.q.w"), "it has attenton.q.w, "),
    ("positions", 13, grown("positions.table", 1), "positions.table has shape"),
)


def question(layer: str, plan: str, variant: str) -> tuple[Any, State, dict[str, np.ndarray]]:
    """The case, its parameters and its batch."""
    (family,) = (family for family in FAMILIES if (family.layer, family.plan) == (layer, plan))
    case = next(cases_of(family, Selection(meshes=({"tp": 1},), numerics=("float64",), variants=(variant,))))
    params, batch = family.shapes(case)
    made = make_inputs(layer, case.options, params, batch, family.ranges(case), "float64", "normal", 0, family.ignored)
    return case, *made


def bad_states() -> Iterator[tuple[str, int, Callable[[State], State]]]:
    for name, number, change, _ in SHAPES:
        yield name, number, change
    for number, layer in enumerate(LAYERS):
        for name in question(*layer)[1]:
            yield f"{number} without {name}", number, lambda s, name=name: {k: v for k, v in s.items() if k != name}
        yield f"{number} with more", number, lambda s: {**s, "more.w": np.zeros((2, 2))}


def answer(build: Callable[[], object]) -> str:
    try:
        build()
    except ValueError as error:
        return str(error)
    return ""


def main() -> int:
    framework = sys.argv[1]
    mesh_module = importlib.import_module(f"{framework}_tp.mesh")
    layers = importlib.import_module(f"{framework}_tp.layers").LAYERS
    mesh_module.join("cpu")
    if framework == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
        mesh = mesh_module.make_mesh({"tp": 1}, jax.sharding.AxisType.Auto)
        inside = lambda: jax.set_mesh(mesh)  # noqa: E731
    else:
        mesh = mesh_module.make_mesh({"tp": 1}, "cpu")
        inside = nullcontext
    answers: dict[str, str] = {}

    def ask(
        name: str, number: int, state: State, change_plan: Callable[[Any], Any] = lambda plan: plan, **more: Any
    ) -> None:
        layer, plan_name, variant = LAYERS[number]
        case, plan = question(layer, plan_name, variant)[0], layers[layer].PLANS[plan_name]
        with inside():
            answers[name] = answer(
                lambda: layers[layer].build(mesh, "manual", change_plan(plan), state, **case.options, **more)
            )

    more = layers["linear"].PLANS["row_parallel"]
    for name, number, change in bad_states():
        ask(name, number, change(question(*LAYERS[number])[1]))
    for number, layer in enumerate(LAYERS):
        state = question(*layer)[1]
        ask(f"{number} as it is", number, state)
        ask(f"{number} plan with more", number, state, lambda p: replace(p, children={**p.children, "dwn": more}))
        ask(f"{number} plan with a param", number, state, lambda p: replace(p, params={**p.params, "wieght": p.x}))
        if layers[layer[0]].PLANS[layer[1]].children:
            ask(f"{number} plan with less", number, state, lambda p: replace(p, children={}))
    ask("dropout of Llama", 15, question(*LAYERS[15])[1], drop_rate=0.1)
    case, _, batch = question(*LAYERS[13])
    for name in ("x", "labels"):
        wrong = {**batch, name: np.full_like(batch[name], case.options["num_ids"])}
        answers[f"{name} outside"] = answer(lambda wrong=wrong: layers[case.layer].check_inputs(wrong, **case.options))
    print(json.dumps(answers))
    mesh_module.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
