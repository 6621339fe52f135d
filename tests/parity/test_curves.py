"""Trainings on real data: the data, what counts as learning, and what is said of a training that is wrong."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from parity.cases.family import CaseError
from parity.cases.notation import index_of
from parity.check import layout_of
from parity.contract import FRAMEWORKS, Result, Shard, Timing
from parity.curves import MODELS, judge, plot_curves, set_up
from parity.curves.data import MODULES, draw_digits, draw_text, read_text
from parity.curves.judge import Judgement, falls, find
from parity.curves.noise import reference
from parity.files_contract import EventLog, save_arrays
from parity.rundir import write_inputs, write_run


def test_text_is_the_same_each_time_and_says_what_it_is():
    (text, source), (again, _) = read_text(), read_text()
    assert text == again
    assert b"class ArgumentParser" in text
    assert f"{len(MODULES)} modules" in source
    assert f"{len(text):,} bytes" in source


def test_missing_module_is_refused(tmp_path):
    with pytest.raises(CaseError, match=r"has no argparse\.py"):
        read_text(tmp_path)


def test_labels_are_the_bytes_that_follow():
    text, _ = read_text()
    batches, _ = draw_text({"B": 3, "S": 16}, 2, np.random.default_rng(0))
    assert len(batches) == 2
    for batch in batches:
        assert np.array_equal(batch["x"][:, 1:], batch["labels"][:, :-1])
        for row, last in zip(batch["x"], batch["labels"][:, -1], strict=True):
            assert bytes([*row.tolist(), int(last)]) in text
    other, _ = draw_text({"B": 3, "S": 16}, 2, np.random.default_rng(1))
    assert not np.array_equal(batches[0]["x"], other[0]["x"])


def test_images_are_digits_between_their_limits():
    pytest.importorskip("sklearn", reason="the extra `data` is not installed")
    batches, _ = draw_digits({"B": 200}, 1, np.random.default_rng(0))
    (batch,) = batches
    assert batch["x"].shape == (200, 1, 8, 8)
    assert (batch["x"].min(), batch["x"].max()) == (-1, 1)
    assert set(batch["labels"].tolist()) == set(range(10))


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(CaseError, match=r"pip install 'tp-parity\[data\]'"):
        set_up("vit", 4, 10, "float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "--model 'bert': there are gpt, vit"),
        ({"dtype": "bfloat16"}, "--dtype 'bfloat16': there are float32, float64"),
        ({"style": "fast"}, "--style 'fast': there are auto, typed, manual"),
        ({"tp": 3}, "^--tp 3: does not divide what tp shards of gpt-tiny; 1, 2, 4 would work$"),
        ({"model": "vit", "tp": 8}, "^--tp 8: does not divide what tp shards of vit-digits; 1, 2, 4 would work$"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(changes, message):
    given = {"model": "gpt", "tp": 4, "num_steps": 10, "dtype": "float32", "style": "auto", **changes}
    with pytest.raises(CaseError, match=message) as error:
        set_up(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("steps", [10, 50])
def test_loss_falls_or_does_not(steps):
    noise = np.random.default_rng(0).standard_normal(steps)
    down = np.linspace(3, 2, steps)
    assert falls(down + 0.05 * noise)
    assert not falls(down[::-1])
    assert not falls(2.5 + noise)
    assert not falls(np.full(steps, 2.5))
    assert not falls(np.where(np.arange(steps) > 4, np.nan, down))


def test_no_false_trend_in_a_thousand_seeds():
    """A loss that only scatters is called falling no more often than P_CHANCE says: 3 of 1000 have odds of 0.02."""
    streams = np.random.default_rng(0).standard_normal((1000, 50))
    assert sum(falls(stream) for stream in streams) <= 3


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A short training of the GPT on one device, and what each framework would say if it were the reference."""
    patch = pytest.MonkeyPatch()
    patch.setitem(MODELS, "gpt", replace(MODELS["gpt"], sizes={"B": 2, "S": 16}))
    training = set_up("gpt", 1, 10, "float32")
    patch.undo()
    return training, reference(training.case, training.params, training.batch)


def write_answers(directory, training, answers):
    """A finished run, in which every framework has the values given."""
    case = training.case
    write_inputs(directory, case, training.params, training.batch)
    write_run(directory, [case], {"device": "cpu"})
    timing = Timing(1.0, 0.1, 9, "cpu", "gloo")
    for framework in FRAMEWORKS:
        values = {name: value.astype(np.float32) for name, value in answers[framework].items()}
        save_arrays(directory / framework / "arrays" / "rank0.safetensors", values)
        shards = {
            name: Shard(
                value.shape,
                index_of(layout_of(training.preset.family, name), case.dims, case.mesh, {"tp": 0}),
                "float32",
            )
            for name, value in values.items()
        }
        result = Result(case.id, 0, {"tp": 0}, shards, timing, "rank0.safetensors")
        EventLog(directory / framework / "rank0.jsonl").append("result", results=[result.to_json()])


def judged(directory, training, answers) -> Judgement:
    write_answers(directory, training, answers)
    return judge(training, directory)


def test_right_training_passes_and_a_learning_rate_a_thousandth_off_does_not(small, tmp_path):
    training, right = small
    wrong = reference(
        training.case, training.params, training.batch, peak_rate=1.001 * training.case.recipe["peak_rate"]
    )
    judgement = judged(tmp_path, training, {"torch": right, "jax": wrong})
    assert max(judgement.errors["torch"].values()) < 1
    assert min(judgement.errors["jax"].values()) > 1
    assert max(judgement.control.values()) > 1
    reasons = " ".join(judgement.findings)
    assert judgement.verdict == "fail"
    assert "jax: loss is" in reasons
    assert "torch and jax: loss is" in reasons
    assert not any(reason.startswith("torch: ") and "bounds" in reason for reason in judgement.findings)
    # The same figures without the fault: nothing is left to say.
    mended = replace(judgement, findings=[])
    mended = replace(mended, curves={name: {"loss": np.linspace(3, 2, 10)} for name in FRAMEWORKS})
    mended = replace(mended, errors=dict.fromkeys(FRAMEWORKS, judgement.errors["torch"]), apart={"loss": 0.0})
    assert find(mended) == []
    for suffix in ("png", "svg"):
        plot_curves(judgement, tmp_path / f"curves.{suffix}")
        assert (tmp_path / f"curves.{suffix}").stat().st_size > 10_000
    # Bounds so wide that they could not tell a wrong training from a right one are no verdict.
    assert find(replace(mended, control={"loss": 0.9, "norm": 0.8})) == [
        "the bounds tell nothing: a learning rate 0.1% larger stays within them"
    ]
