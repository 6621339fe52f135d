"""Do two trainings agree, and do they learn? Reads the files of the run; needs neither framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from parity.check import assemble, check_layouts
from parity.contract import FRAMEWORKS, Case, ContractError
from parity.curves.noise import reference, reference_and_bounds
from parity.curves.setup import Training
from parity.rundir import Run, read_run
from parity.tolerance import error_in_bounds

QUANTITIES = ("loss", "norm")
# The control: a training that is wrong by so little must be told from a right one.
CONTROL = 1e-3  # of the learning rate
P_CHANCE = 1e-3

Curves = dict[str, np.ndarray]  # of QUANTITIES: [steps]


@dataclass
class Judgement:
    """What is known of a training; errors are in units of the bound, above 1 rounding does not explain them."""

    case: Case
    source: str
    reference: Curves
    bound: Curves  # of one framework's distance from the reference
    wrong: Curves  # the reference with a learning rate wrong by CONTROL
    curves: dict[str, Curves]  # by framework
    errors: dict[str, dict[str, float]]  # by framework: loss, norm, and the worst of all parameters and moments
    apart: dict[str, float]  # of torch and jax from each other
    control: dict[str, float]  # of `wrong` from the reference
    findings: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return "fail" if self.findings else "pass"

    def to_json(self) -> dict[str, Any]:
        """Everything but the case's inputs."""

        def lists(curves: Curves) -> dict[str, list[float]]:
            return {name: values.tolist() for name, values in curves.items()}

        figures: dict[str, Any] = {name: lists(getattr(self, name)) for name in ("reference", "bound", "wrong")}
        figures["curves"] = {name: lists(curves) for name, curves in self.curves.items()}
        rest = ("source", "errors", "apart", "control", "verdict", "findings")
        return {
            "case": self.case.id,
            "recipe": self.case.recipe,
            **figures,
            **{key: getattr(self, key) for key in rest},
        }


def judge(training: Training, directory: Path, on_sample: Callable[[], None] = lambda: None) -> Judgement:
    """The judgement of what both frameworks wrote into the directory.

    Raises ContractError where a rank has no result.
    """
    case, run = training.case, read_run(directory)
    held = {framework: values_of(run, case, framework) for framework in FRAMEWORKS}
    want, bounds = reference_and_bounds(case, training.params, training.batch, on_sample)
    wrong = reference(case, training.params, training.batch, peak_rate=case.recipe["peak_rate"] * (1 + CONTROL))
    steps = case.recipe["num_steps"]
    curves = {framework: curves_of(values, steps) for framework, (values, _) in held.items()}
    judgement = Judgement(
        case=case,
        source=training.source,
        reference=curves_of(want, steps),
        bound=curves_of(bounds, steps),
        wrong=curves_of(wrong, steps),
        curves=curves,
        errors={framework: errors_of(values, want, bounds) for framework, (values, _) in held.items()},
        apart={},
        control={},
    )
    for name in QUANTITIES:
        # Two frameworks err independently of each other: their distance is that of two deviations, root 2 of one.
        both = np.sqrt(2) * judgement.bound[name]
        judgement.apart[name] = error_in_bounds(curves["torch"][name], curves["jax"][name], both)
        changed, want_of = judgement.wrong[name], judgement.reference[name]
        judgement.control[name] = error_in_bounds(changed, want_of, judgement.bound[name])
    judgement.findings += [finding for _, problems in held.values() for finding in problems]
    for framework in FRAMEWORKS:
        one = check_layouts(case, training.preset.family, run.answers[framework].results[case.id], want)
        judgement.findings += [f"{framework} {reason}" for reason in one.reasons]
    judgement.findings += find(judgement)
    return judgement


def find(judgement: Judgement) -> list[str]:
    """What is wrong with the figures, one line each."""
    findings = []
    for framework, errors in judgement.errors.items():
        findings += [
            f"{framework}: {name} is {error:.3g} bounds from the reference"
            for name, error in errors.items()
            if error > 1
        ]
        if not falls(loss := judgement.curves[framework]["loss"]):
            findings.append(
                f"{framework}: no clear fall of the loss in {len(loss)} steps, from {loss[0]:.4g} to {loss[-1]:.4g}; "
                "more steps would tell"
            )
    findings += [
        f"torch and jax: {name} is {error:.3g} bounds apart" for name, error in judgement.apart.items() if error > 1
    ]
    if max(judgement.control.values()) <= 1:
        findings.append(f"the bounds tell nothing: a learning rate {CONTROL:.1%} larger stays within them")
    return findings


def falls(loss: np.ndarray) -> bool:
    """Whether later steps have smaller losses, by Kendall's rank correlation (the test of Mann): chance alone, which
    batches bring in, would show as clear a trend once in 1 / P_CHANCE trainings.
    """
    return bool(scipy.stats.kendalltau(np.arange(len(loss)), loss, alternative="less").pvalue < P_CHANCE)


def values_of(run: Run, case: Case, framework: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Every tensor, put together from the shards of all ranks, and what is wrong with them."""
    answers = run.answers[framework]
    results = answers.results.get(case.id, [])
    if len(results) != case.num_devices:
        reason = answers.errors.get(("ranks", case.id), f"{len(results)} of {case.num_devices} ranks have a result")
        raise ContractError(f"{framework}: {reason}")
    held = [run.shards(framework, result) for result in results]
    values, problems = {}, []
    for name in held[0]:
        values[name], problem = assemble([shards[name] for shards in held])
        if problem:
            problems.append(f"{framework} {name}: {problem}")
    return values, problems


def curves_of(values: Mapping[str, np.ndarray], num_steps: int) -> Curves:
    """Loss and norm over the steps."""
    return {name: np.array([values[f"step{t}.{name}"] for t in range(1, num_steps + 1)], float) for name in QUANTITIES}


def errors_of(
    got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], bounds: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """The worst errors: of the loss, of the norm, of parameters and moments."""
    worst: dict[str, float] = dict.fromkeys((*QUANTITIES, "parameters"), 0.0)
    for name in want:
        kind = name.rpartition(".")[2] if name.count(".") == 1 else "parameters"
        error = error_in_bounds(got[name], want[name], bounds[name]) if name in got else np.inf
        worst[kind] = max(worst[kind], error)
    return worst
