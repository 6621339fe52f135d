"""Every check is seen to fail: faults planted in real workers of both frameworks, and the same cases without them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from faulty_worker import FAULTS, NO_FAULT
from real_runs import run_cases

from parity.cases import FAMILIES
from parity.cases.family import Selection, cases_of

pytestmark = pytest.mark.timeout(900)  # the first test waits for the run of all cases

# Where each fault is planted: (plan, variant, style), and what the verdict must say of it, for each framework.
NUMBERS = "bounds|must be equal|holds other values"
PLANTED = {
    "missing_all_reduce": ("row_parallel", "bias", "manual", rf" y: .*({NUMBERS})"),
    "missing_gradient_all_reduce": ("column_parallel", "bias", "manual", rf" x.grad: .*({NUMBERS})"),
    "bias_added_tp_times": ("row_parallel", "bias", "manual", rf" y: .*({NUMBERS})"),
    "swapped_shards": ("megatron", "gelu_erf", "typed", rf" up.w: .*({NUMBERS})"),
    "gelu_tanh_for_erf": ("megatron", "gelu_erf", "auto", rf" y: .*({NUMBERS})"),
    "weight_replicated_by_accident": (
        "column_parallel",
        "bias",
        "typed",
        r" w \[D F@tp\]: rank 0 holds \[0:24, 0:36\]",
    ),
    "other_input_on_one_rank": ("column_parallel", "bias", "auto", r" x: rank . holds other values"),
    "one_collective_too_many": (
        "row_parallel",
        "bias",
        "manual",
        r".*tp float64 all_reduce moves \d+ B, the formula",
    ),
    "target_of_another_dtype": ("column_parallel", "bias", "typed", r" y: is float32, expected float64"),
    "weights_never_move": ("megatron", "gelu_erf", "auto", rf" step1.up.w: .*({NUMBERS})"),
    "replicated_gradients_counted_tp_times": ("megatron", "gelu_erf", "manual", rf" step1.norm: .*({NUMBERS})"),
    "gradients_not_synced_over_dp": ("dp", "gpt", "manual", rf" (step1.)?inner.mlp.up.w(.grad)?: .*({NUMBERS})"),
    # Not y: both operands' panels come from the next owner, and their products add up to the same sum.
    "panel_of_another_owner": ("summa", "bias", "manual", rf" [xw].grad: .*({NUMBERS})"),
    "norm_gradient_of_own_rows": ("grid", "layer_norm", "manual", rf" scale.grad: .*({NUMBERS})"),
    "masks_by_local_place": ("feature_parallel", "half", "manual", rf" y: .*({NUMBERS})"),
    "decay_of_the_framework": ("megatron", "gelu_erf", "typed", rf" step1.down.w: .*({NUMBERS})"),
    "gradients_times_tp": ("row_parallel", "bias", "manual", rf" w.grad: .*({NUMBERS})"),
    "fused_weight_cut_as_one": ("contiguous", "contiguous", "manual", rf" y: .*({NUMBERS})"),
    "norm_gradient_of_own_tokens": ("norm/sequence_parallel", "layer_norm", "manual", rf" scale.grad: .*({NUMBERS})"),
}
LAYERS = ("linear", "mlp", "dropout", "fused_attention", "norm", "hybrid.block", "grid.linear", "grid.norm")
IN_TRAINING = ("weights_never_move", "replicated_gradients_counted_tp_times", "decay_of_the_framework")
# The faults that must be seen as well where rounding is coarser.
ALSO_FLOAT32 = ("missing_all_reduce", "bias_added_tp_times", "swapped_shards", "gelu_tanh_for_erf", *IN_TRAINING)
IN_BOTH = ("gradients_not_synced_over_dp",)  # in a step and in training


def case_of(fault: str, numerics: str, seed: int):
    plan, variant, style, _ = PLANTED[fault]
    layers = (plan.partition("/")[0],) if "/" in plan else LAYERS
    (family,) = (one for one in FAMILIES if one.plan == plan.rpartition("/")[2] and one.layer in layers)
    wanted = Selection(
        meshes=({"tp": 4}, {"dp": 2, "tp": 2}, {"x": 2, "y": 2}),
        numerics=(numerics,),
        variants=(variant,),
        seeds=(seed,),
        # A program of its own for each fault, as cases of one program are traced once; tp divides a sequence it shards.
        dims={"S": (5 + seed) * (4 if "sequence" in plan else 1)},
    )
    (case,) = (case for case in cases_of(family, wanted) if case.style == style)
    return case


CASES = [
    (fault, f"train-{numerics}" if fault in IN_TRAINING else numerics, seed)
    for seed, fault in FAULTS.items()
    for numerics in (("float64", "float32") if fault in ALSO_FLOAT32 else ("float64",))
] + [(fault, "train-float64", seed) for seed, fault in FAULTS.items() if fault in IN_BOTH]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run: every fault in the case that shows it, and each of these cases once without."""
    worker = str(Path(__file__).with_name("faulty_worker.py"))  # it reads from a case's seed which fault to plant
    commands = {name: (sys.executable, worker, name) for name in ("torch", "jax")}
    planted = [case_of(*which) for which in CASES]
    controls = {case.id: case for case in (case_of(fault, numerics, NO_FAULT) for fault, numerics, _ in CASES)}
    return run_cases(tmp_path_factory.mktemp("faults"), [*planted, *controls.values()], commands)


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize(
    ("fault", "numerics", "seed"), CASES, ids=[f"{fault}-{numerics}" for fault, numerics, _ in CASES]
)
def test_fault_is_found_and_named(finished, fault, numerics, seed, framework):
    entry = finished.case(case_of(fault, numerics, seed).id)
    assert entry["verdict"] == "fail"
    reasons = [reason for reason in entry["reason"].split("; ") if reason.startswith(framework)]
    assert any(re.search(f"^{framework}{PLANTED[fault][3]}", reason) for reason in reasons), reasons


def test_the_same_cases_pass_without_the_faults(finished):
    verdicts = {case["id"]: case["verdict"] for case in finished.comparison["cases"] if "/seed" not in case["id"]}
    assert len(verdicts) == len({case_of(fault, numerics, NO_FAULT).id for fault, numerics, _ in CASES})
    assert set(verdicts.values()) == {"pass"}, [
        case for case in finished.comparison["cases"] if case["verdict"] != "pass"
    ]
