"""States, plans and inputs that do not fit are refused in one line, in the same words by both frameworks."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from bad_input_worker import LAYERS, SHAPES, question

# Linears and layer norms may have no bias; these are needed.
NEEDED_BIASES = ("models.bert head.b", "models.bert vocab.b", "models.vit embed.b")


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, str]]:
    found = {}
    for framework in ("torch", "jax"):
        place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, **place, "MASTER_PORT": str(random.randrange(15_000, 30_000))}
        command = [sys.executable, str(Path(__file__).with_name("bad_input_worker.py")), framework]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[framework] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_both_frameworks_say_the_same(answers):
    """But for the names of parameters, which a plan has as the framework has them: weight, kernel."""

    def common(found: dict[str, str]) -> dict[str, str]:
        return {name: said.partition(";")[0] if "a param" in name else said for name, said in found.items()}

    assert common(answers["torch"]) == common(answers["jax"])


def test_every_answer_is_one_line(answers):
    assert all("\n" not in answer for answer in answers["torch"].values())


@pytest.mark.parametrize("number", range(len(LAYERS)), ids=[" ".join(layer) for layer in LAYERS])
def test_what_fits_is_taken(answers, number):
    assert answers["torch"][f"{number} as it is"] == ""


@pytest.mark.parametrize(("name", "expected"), [(name, expected) for name, _, _, expected in SHAPES])
def test_shape_or_name_that_does_not_fit_is_named_with_what_would(answers, name, expected):
    assert expected in answers["torch"][name]


@pytest.mark.parametrize("number", range(len(LAYERS)), ids=[" ".join(layer) for layer in LAYERS])
def test_every_parameter_that_is_missing_is_named(answers, number):
    layer = LAYERS[number][0]
    for name in question(*LAYERS[number])[1]:
        is_optional = name.rpartition(".")[2] == "b" and f"{layer} {name}" not in NEEDED_BIASES
        want = "" if is_optional else f"the state lacks '{name}'"
        assert answers["torch"][f"{number} without {name}"].startswith(want)
        assert bool(answers["torch"][f"{number} without {name}"]) == (not is_optional)


@pytest.mark.parametrize("number", range(len(LAYERS)), ids=[" ".join(layer) for layer in LAYERS])
def test_what_matches_no_parameter_is_an_error(answers, number):
    found = answers["torch"]
    assert found[f"{number} with more"].startswith("the state has 'more.w', which is no parameter here; there are ")
    assert found[f"{number} plan with more"].startswith("the plan has 'dwn', which matches no parameter; there are ")
    assert found[f"{number} plan with a param"].startswith("the plan has 'wieght', which matches no parameter")
    if f"{number} plan with less" in found:
        assert found[f"{number} plan with less"].startswith("the plan lacks '")


def test_ids_outside_the_vocabulary_are_refused(answers):
    for name in ("x", "labels"):
        assert answers["torch"][f"{name} outside"].startswith(f"{name}[0, 0] is ")
        assert "ids are 0 to " in answers["torch"][f"{name} outside"]


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_dropout_of_a_model_without_any_is_refused(answers, framework):
    assert answers[framework]["dropout of Llama"] == "drop_rate=0.1: Llama has no dropout; 0 would work"
