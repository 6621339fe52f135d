"""`parity predict` on a grid of 2D tensor parallelism: what is asked and refused, and 2D rows beside 1D ones."""

import json
import math
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from typer.testing import CliRunner

from parity import cli_predict
from parity.cases.family import CaseError, check_divisible
from parity.cli import app
from parity.cost import Group, load_machine, wire_factor
from parity.predict import Question, RequestError, predict
from parity.predict.crossover import sent_on_grid
from parity.predict.sweep import plan_choices, verdicts
from parity.presets import load_preset
from parity.reconcile import family_in_mesh, reconcile, step_formula
from parity.report.prediction import print_prediction
from parity.report.sweep import print_sweep
from parity.step_contract import Memory, Operation, StepTrace, TracedCollective
from parity.steps import padded

GPT = ("predict", "--machine", "derecho", "--model", "gpt2", "--batch", "8", "--seq", "512")
SQUARE, BESIDE = {"x": 2, "y": 2}, {"dp": 2, "x": 2, "y": 2}


def formula_step(framework, request):
    """A trace that sends the formula, and one product."""
    entries = tuple(
        TracedCollective(one.kind, one.axis, one.dtype, one.payload_bytes, one.count, one.pass_)
        for one in step_formula(padded(request), framework == "jax")
    )
    work = Operation("forward", "matmul", 4096, 4096, 4096, 1, flops=2 * 4096**3)
    return StepTrace(framework, request.id, entries, (work,), Memory(1, 1, 2, 3, 4, 6_500_000_000, "test"))


def traced(requests, commands, on_event=None):
    return {framework: [formula_step(framework, one) for one in requests] for framework in ("torch", "jax")}


@pytest.fixture
def call(monkeypatch):
    monkeypatch.setattr(cli_predict, "trace_steps", traced)
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *words: CliRunner().invoke(app, words)


def asked(model="gpt2", mesh=SQUARE, batch=8, seq=512, plan=None, style=None):
    seq = None if model.startswith("vit") else seq
    return Question.of(load_machine("derecho"), load_preset(model), mesh, batch, seq, plan, style, "bfloat16", False)


@pytest.mark.parametrize(
    ("model", "plan", "layer", "case_plan"),
    [
        ("gpt2", None, "grid.models.gpt", "summa"),
        ("gpt2", "stationary", "grid.models.gpt", "stationary"),
        ("vit-era5", None, "grid.models.vit", "field_summa"),
        ("vit-digits", "stationary", "grid.models.vit", "classes_stationary"),
    ],
)
def test_a_grid_asks_for_the_model_made_of_its_layers_by_the_named_algorithm(model, plan, layer, case_plan):
    request = asked(model, plan=plan).request()
    assert (request.layer, request.plan, request.style, request.mesh) == (layer, case_plan, "manual", SQUARE)


def test_without_a_grid_style_and_plan_are_those_of_before():
    line = asked(mesh={"fsdp": 2, "tp": 2})
    assert (line.plan, line.style, line.request().layer) == ("megatron", "auto", "models.gpt")


def test_json_has_links_ledger_and_reconciliation_of_both_axes(call):
    content = json.loads(call(*GPT, "--mesh", "x=4,y=4", "--batch", "16", "--json").stdout)
    assert (content["plan"], content["style"]) == ("summa", "manual")
    assert {axis: one["link"] for axis, one in content["axes"].items()} == {"x": "network", "y": "nvlink"}
    for step in content["frameworks"].values():
        links = {row["axis"]: row["link"] for row in step["ledger"] if row["kind"] == "broadcast"}
        assert links == {"x": "network", "y": "nvlink"}
        assert step["reconciliation"]["unexplained_bytes"] == 0
        assert {part["name"].split()[0] for part in step["parts"] if "collectives" in part["name"]} == {"x", "y", "x+y"}


def with_figures(choice):
    """The choice with a prediction of both frameworks."""
    answers = {name: formula_step(name, choice.question.request()) for name in ("torch", "jax")}
    return replace(choice, prediction=predict(choice.question, answers))


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_tables_of_a_grid_are_whole(columns):
    question = asked(mesh=BESIDE)
    console = Console(width=columns, file=StringIO())
    answers = {name: formula_step(name, question.request()) for name in ("torch", "jax")}
    print_prediction(console, predict(question, answers))
    print_sweep(console, [with_figures(one) for one in plan_choices(question)], "by plan")
    text = console.file.getvalue()
    for word in ("plan summa", "style manual", "dp=2,x=2,y=2", "broadcast", "2D stationary"):
        assert word in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= columns


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--mesh", "x=2"), "mesh x=2: a grid needs x and y"),
        (("--mesh", "y=2,x=2"), "mesh y=2,x=2: a grid needs x and y, and they must be the last axes, in this order"),
        (("--mesh", "x=2,y=2,dp=2"), "they must be the last axes"),
        (("--mesh", "fsdp=2,x=2,y=2"), "beside a grid x, y steps are traced with dp alone, not fsdp"),
        (("--mesh", "x=2,y=2,tp=2"), "beside a grid x, y steps are traced with dp alone, not tp"),
        (("--mesh", "x=2,y=2", "--model", "bert-base"), "models.bert has no form on a grid"),
        (("--mesh", "x=2,y=2", "--plan", "megatron"), "plan 'megatron': there are summa, stationary"),
        (("--mesh", "x=2,y=2", "--style", "auto"), "style 'auto': there are manual"),
        (("--mesh", "x=2,y=2", "--sweep", "tp"), "--sweep tp: a grid has no axis tp"),
        (("--mesh", "x=2,y=2", "--seq", "2048"), "gpt2 has 1024 positions"),
        (("--mesh", "tp=4", "--plan", "summa"), "plan 'summa': there are megatron, sequence_parallel"),
        (("--mesh", "x=16,y=4", "--batch", "8"), "8 sequences of a data-parallel part do not divide over x=16"),
        (("--mesh", "x=1,y=8", "--batch", "8"), "12 heads of 64 do not divide over y=8"),
        (("--mesh", "x=64,y=4"), "gpt2"),
    ],
)
def test_what_cannot_be_on_a_grid_is_refused_in_one_line(call, words, says):
    given = dict(zip(GPT[1::2], GPT[2::2], strict=True)) | dict(zip(words[::2], words[1::2], strict=True))
    done = call("predict", *(word for pair in given.items() for word in pair))
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("model", ["gpt-tiny", "vit-tiny", "vit-digits"])
@pytest.mark.parametrize("plan", ["summa", "stationary"])
def test_refused_is_just_what_the_layouts_cannot_cut(model, plan):
    agreed = 0
    for x, y, batch in ((x, y, batch) for x in (1, 2, 3, 4) for y in (1, 2, 4, 8) for batch in (3, 4, 8)):
        question = asked(model, {"x": x, "y": y}, batch, 64, plan)
        try:
            request = question.request()
        except RequestError:
            request = None
        except ValueError:  # the machine has no room for such groups
            continue
        wanted = padded(asked(model, SQUARE, 8, 64, plan).request())
        dims = {**wanted.dims, "B": batch}
        if "V" in dims:
            dims["V"] = -(-dims["V"] // math.lcm(x, y)) * math.lcm(x, y)
        divides = True
        try:
            check_divisible(family_in_mesh(wanted), dims, {"x": x, "y": y})
        except CaseError:  # nothing else: a fault of the check would pass for a layout that does not divide
            divides = False
        heads = question.preset.dims["H"] % (x if plan == "stationary" else y) == 0
        assert (request is not None) == (divides and heads), (x, y, batch)
        agreed += request is not None
    assert agreed > 5


def test_rows_of_the_table_are_padded_for_both_axes():
    request = asked("gpt2", {"x": 3, "y": 4}, 12).request()
    assert padded(request).dims["V"] % 12 == 0
    assert padded(asked("gpt2", {"x": 4, "y": 4}, 8).request()).dims["V"] == load_preset("gpt2").dims["V"]


def test_sweep_traces_2d_rows_of_a_model_that_has_a_grid_form(call):
    rows = json.loads(call(*GPT, "--mesh", "fsdp=2,tp=4", "--sweep", "plan", "--json").stdout)["choices"]
    assert [row["name"] for row in rows] == ["megatron", "sequence_parallel", "2D summa", "2D stationary"]
    assert [row["source"] for row in rows] == ["trace"] * 4
    assert [row["mesh"] for row in rows] == ["fsdp=2,tp=4"] * 2 + ["dp=2,x=2,y=2"] * 2
    assert rows[2]["prediction"]["style"] == "manual"
    assert all(row["prediction"]["frameworks"]["torch"]["step"]["seconds"] > 0 for row in rows)
    ledger = rows[2]["prediction"]["frameworks"]["torch"]["ledger"]
    sent = sum(row["wire_bytes"] for row in ledger if set(row["axis"].split("+")) & {"x", "y"})
    assert rows[2]["tensor_parallel_wire_bytes"] == pytest.approx(sent)
    again = json.loads(call(*GPT, "--mesh", "dp=2,x=2,y=2", "--sweep", "plan", "--json").stdout)["choices"]
    assert [row["mesh"] for row in again] == ["dp=2,tp=4"] * 2 + ["dp=2,x=2,y=2"] * 2


def test_sweep_takes_the_closed_formula_where_there_is_no_grid_form_and_says_so(call):
    words = (*GPT[:3], "--model", "bert-base", *GPT[5:], "--mesh", "dp=2,tp=4", "--sweep", "plan")
    rows = json.loads(call(*words, "--json").stdout)["choices"]
    assert [(row["source"], row["word"]) for row in rows[2:]] == [("formula", "unknown")] * 2
    assert [row["source"] for row in rows[:2]] == ["trace"] * 2
    assert rows[2]["prediction"] is None
    assert rows[2]["tensor_parallel_wire_bytes"] > 0
    shown = call(*words).stdout
    assert "formula" in shown
    assert "2D summa: no step to trace, as models.bert has no form on a grid" in " ".join(shown.split())


def test_a_tp_degree_that_is_no_grid_has_no_2d_row():
    names = [choice.name for choice in plan_choices(asked(mesh={"fsdp": 2, "tp": 2}))]
    assert names == ["megatron", "sequence_parallel"]


def test_2d_that_cannot_be_is_impossible_with_its_reason():
    choices = plan_choices(asked(mesh={"tp": 4}, batch=1))
    words = [verdict.word for verdict in verdicts(choices)]
    assert words[2:] == ["impossible", "impossible"]
    assert choices[2].refused == "gpt2: 1 sequences of a data-parallel part do not divide over x=2"


LLAMA = ("predict", "--machine", "derecho", "--model", "llama3-8b", "--seq", "4096", "--sweep", "plan")


@pytest.mark.parametrize(
    ("ways", "reasons"),
    [
        (
            6,
            (
                "megatron: mesh tp=6: groups of tp=6 lie unevenly on nodes of 4",
                "2D summa: mesh x=2,y=3: groups of y=3 lie unevenly on nodes of 4",
            ),
        ),
        (
            12,
            (
                "megatron: llama3-8b: 32 heads do not divide over tp=12",
                "2D summa: llama3-8b: 4096 features do not divide over x=3",
            ),
        ),
        (
            128,
            (
                "sequence_parallel: llama3-8b: 32 heads do not divide over tp=128",
                "2D summa: llama3-8b: 8 key and value heads do not divide over y=16",
                "2D stationary: llama3-8b: 8 sequences of a data-parallel part do not divide over y=16",
            ),
        ),
    ],
)
def test_where_no_plan_can_be_each_is_named_with_its_reason(call, ways, reasons):
    done = call(*LLAMA, "--batch", "8", "--mesh", f"tp={ways}")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    for reason in reasons:
        assert reason in done.stderr


def test_closed_formula_is_of_what_can_be_and_no_trace_is_lacking_where_none_was_asked(call):
    words = (*LLAMA, "--batch", "16", "--mesh", "tp=128")
    done = call(*words, "--json")
    assert done.exit_code == 0
    rows = json.loads(done.stdout)["choices"]
    assert [row["word"] for row in rows] == ["impossible"] * 3 + ["unknown"]
    assert rows[2]["why"] == "llama3-8b: 8 key and value heads do not divide over y=16"
    assert "source" not in rows[2]
    assert "tensor_parallel_wire_bytes" not in rows[2]
    assert rows[3]["source"] == "formula"  # whose heads lie over x=8
    assert rows[3]["tensor_parallel_wire_bytes"] > 0
    assert call(*words).stdout.count("(formula)") == 1
    assert "(trace)" not in call(*words).stdout


def test_a_closed_formula_beside_traced_plans_is_refused_with_its_reason():
    choices = plan_choices(asked("llama3-8b", {"tp": 8}, batch=3))
    assert [bool(choice.refused) for choice in choices] == [False, False, True, True]
    assert choices[2].refused == "llama3-8b: 3 sequences of a data-parallel part do not divide over x=2"
    assert choices[2].closed is None


def test_a_model_without_a_form_on_a_grid_is_not_asked_for_as_another():
    planar = asked("llama3-8b", {"tp": 4}).on(SQUARE, "summa", "manual")
    with pytest.raises(RequestError, match=r"mesh x=2,y=2: models\.llama has no form on a grid"):
        planar.request()


@pytest.mark.parametrize("plan", ["summa", "stationary"])
def test_closed_formula_of_blocks_is_that_of_the_traced_model(plan):
    question = asked(plan=plan)
    request = question.request()  # of which a model without blocks sends the rest
    bare = type(request)(**{**vars(request), "dims": {**request.dims, "L": 0}})
    sent = [
        sum(
            one.count * one.payload_bytes * wire_factor(one.kind, Group.of_axis(SQUARE, one.axis, 4).gpus)
            for one in step_formula(step)
            if one.pass_ != "optimizer"
        )
        for step in (request, bare)
    ]
    assert sent_on_grid(question).wire_bytes == pytest.approx(sent[0] - sent[1])


@pytest.mark.parametrize("axis", ["dp", "fsdp"])
@pytest.mark.parametrize("model", ["bert-tiny", "vit-tiny", "vit-digits"])
def test_any_model_has_a_formula_beside_data_parallelism(model, axis):
    request = asked(model, {axis: 2, "tp": 2}, 8, 64).request()
    found = reconcile(request, formula_step("torch", request))
    assert found.unexplained_bytes == 0
    assert any(row.axis == axis for row in found.rows)
