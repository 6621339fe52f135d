"""A training on real data as a case: sizes, recipe, initial state and batches; and running it in both frameworks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from parity.cases.family import CaseError, check_divisible, make_case
from parity.cases.training import RECIPE
from parity.contract import DTYPES, STYLES, Case
from parity.curves.data import DRAW
from parity.launch import Progress, run_group
from parity.presets import Preset, load_preset
from parity.run import Command, Manner, groups
from parity.rundir import check_new, write_inputs, write_run

DTYPES_HERE = ("float32", "float64")  # in bfloat16 the update of a weight is smaller than its last place


@dataclass(frozen=True)
class Model:
    """What `parity train --model` names."""

    preset: str
    data: str
    sizes: Mapping[str, int]  # of a batch
    table: float  # deviation of the initial embeddings and positions: as large as what they are added to
    peak_rate: float
    max_norm: float  # above the norms of some steps and below those of others


MODELS = {
    "gpt": Model("gpt-tiny", "text", {"B": 8, "S": 32}, table=0.1, peak_rate=3e-3, max_norm=1.0),
    "vit": Model("vit-digits", "digits", {"B": 16}, table=0.5, peak_rate=3e-3, max_norm=3.0),
}


@dataclass(frozen=True)
class Training:
    """A case with its inputs, which both frameworks and the reference get alike."""

    case: Case
    preset: Preset
    params: Mapping[str, np.ndarray]
    batch: Mapping[str, np.ndarray]
    source: str  # of the data


def set_up(model: str, tp: int, num_steps: int, dtype: str, style: str = "auto", seed: int = 0) -> Training:
    """The training of a model. Raises CaseError for what there is not, or what tp does not divide."""
    for name, value, known in (("model", model, MODELS), ("dtype", dtype, DTYPES_HERE), ("style", style, STYLES)):
        if value not in known:
            raise CaseError(f"--{name} {value!r}: there are {', '.join(known)}")
    chosen = MODELS[model]
    preset, mesh = load_preset(chosen.preset), {"tp": tp}
    dims = {**preset.dims, **chosen.sizes}
    if tp not in (degrees := tp_degrees(preset, dims)):
        fitting = ", ".join(map(str, degrees))
        raise CaseError(f"--tp {tp}: does not divide what tp shards of {preset.name}; {fitting} would work")
    case = make_case(preset.family, preset.family.variants[0], dims, mesh, style, f"train-{dtype}", seed)
    case = replace(case, options=dict(preset.options), recipe=recipe_of(chosen, num_steps))
    rng = np.random.default_rng(seed)
    params = {name: initial(name, shape, chosen.table, dims["L"], rng) for name, shape in preset.shapes().items()}
    data = DRAW[chosen.data](dims, num_steps, rng)
    batch = {f"batch{i}.{name}": array for i, one in enumerate(data.batches) for name, array in one.items()}
    batch |= {f"batch{i}.target": np.zeros(()) for i in range(num_steps)}  # the model's output is its loss
    return Training(case, preset, rounded(params, dtype), rounded(batch, dtype), data.source)


def tp_degrees(preset: Preset, dims: Mapping[str, int]) -> list[int]:
    """Over how many devices the model can be sharded; each has a head at least."""
    degrees = []
    for degree in range(1, dims["H"] + 1):
        with suppress(CaseError):
            check_divisible(preset.family, dims, {"tp": degree})
            degrees.append(degree)
    return degrees


def recipe_of(model: Model, num_steps: int) -> dict[str, Any]:
    """The hyperparameters; parameters and moments are compared after the last step."""
    own = {"peak_rate": model.peak_rate, "end_rate": model.peak_rate / 10, "max_norm": model.max_norm}
    steps = {"num_steps": num_steps, "warmup_steps": max(1, num_steps // 10), "record_every": num_steps}
    return {**RECIPE, **own, **steps, "num_microbatches": 1}


def initial(name: str, shape: tuple[int, ...], table: float, num_blocks: int, rng: np.random.Generator) -> np.ndarray:
    """Norms 1, biases 0, tables N(0, table^2), weights N(0, 1 / inputs), those of what is added to the residual stream
    2 L times smaller in variance, as in GPT-2.
    """
    if name.endswith("scale"):
        return np.ones(shape)
    if name.endswith(".b"):
        return np.zeros(shape)
    if name.endswith("table"):
        return table * rng.standard_normal(shape)
    adds = name.endswith(("attention.o.w", "mlp.down.w"))
    variance = 1 / (shape[0] * (2 * num_blocks if adds else 1))
    drawn: np.ndarray = variance**0.5 * rng.standard_normal(shape)
    return drawn


def rounded(arrays: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Numbers in the dtype of the case; ids as they are."""
    return {
        name: array.astype(DTYPES[dtype]) if np.issubdtype(array.dtype, np.floating) else array
        for name, array in arrays.items()
    }


def run_training(
    training: Training,
    directory: Path,
    commands: Mapping[str, Command],
    device: str,
    case_limit_s: float,
    on_event: Callable[[Progress], None],
) -> None:
    """Train in PyTorch, then in JAX; all that they say goes into the directory, which must be new or empty."""
    case = training.case
    check_new(directory)
    write_inputs(directory, case, training.params, training.batch)
    manner = Manner(device, case_limit_s=case_limit_s)
    write_run(directory, [case], {**manner.settings, "seed": case.seed, "source": training.source})
    for group, case_ids in groups([case], commands, manner):
        if group.role == "ranks":  # what it would be on A100s is what `parity run` asks
            run_group(directory, group, case_ids, on_event)
