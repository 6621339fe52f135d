"""`parity predict` and `parity advise` as people call them, on steps written down from closed formulas."""

import json
from dataclasses import replace
from io import StringIO

import pytest
from closed_step import llama_step
from rich.console import Console
from typer.testing import CliRunner

from parity import cli_predict
from parity.cli import app
from parity.cost import load_machine
from parity.cost.load import MACHINES
from parity.predict import Question, predict
from parity.predict.advise import advise
from parity.predict.crossover import crossover, first_win
from parity.predict.sweep import Choice, tp_choices, verdicts
from parity.presets import load_preset
from parity.report.prediction import print_prediction
from parity.report.sweep import print_advice, print_crossover, print_sweep
from parity.step_contract import StepTrace

LLAMA = ("--model", "llama3-8b", "--batch", "8", "--seq", "4096")
ON_DERECHO = ("--machine", "derecho", "--mesh", "fsdp=2,tp=4", *LLAMA)


def traced(requests, commands, on_event):
    return {framework: [answer(framework, one) for one in requests] for framework in ("torch", "jax")}


def answer(framework, request):
    sizes = request.dims
    return llama_step(framework, request.id, request.mesh, sizes["B"], sizes["S"], sizes, float(request.recompute))


def without_plugin(requests, commands, on_event):
    skipped = "no A100 compiler: pip install 'tp-parity[a100]'"
    return {
        **traced(requests, commands, on_event),
        "jax": [StepTrace("jax", one.id, skipped=skipped) for one in requests],
    }


@pytest.fixture
def call(monkeypatch):
    monkeypatch.setattr(cli_predict, "trace_steps", traced)
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *words: CliRunner().invoke(app, words)


def question(mesh=None, machine="derecho", batch=8, seq=4096, **more):
    return Question(load_machine(machine), load_preset("llama3-8b"), mesh or {"fsdp": 2, "tp": 4}, batch, seq, **more)


def predicted(choices, change=lambda trace: trace):
    return [choice if choice.refused else replace(choice, prediction=predict(
        choice.question, {name: change(answer(name, choice.question.request())) for name in ("torch", "jax")}))
        for choice in choices]  # fmt: skip


def test_json_adds_up_and_says_that_it_is_predicted(call):
    done = call("predict", *ON_DERECHO, "--json")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert content["predicted"] is True
    assert content["axes"]["fsdp"] == {"gpus": 2, "nodes": 2, "sharing": 4, "gpus_per_node": 1, "link": "network"}
    for framework in ("torch", "jax"):
        step = content["frameworks"][framework]
        assert step["step"]["seconds"] == pytest.approx(sum(part["seconds"] for part in step["parts"]))
        assert {row["link"] for row in step["ledger"] if row["axis"] == "tp"} == {"nvlink"}
        (reduced,) = [row for row in step["ledger"] if row["kind"] == "all_reduce" and row["pass"] == "forward"]
        calls = [row for row in step["calls"] if row["kind"] == "all_reduce" and row["pass"] == "forward"]
        assert sum(row["wire_bytes"] for row in calls) == reduced["wire_bytes"]
        assert {"link", "dtype", "payload_bytes", "count", "loop_trips", "is_async", "source_line"} <= set(calls[0])
        assert (reduced["count"], reduced["payload_bytes"]) == (65, 65 * 2 * 4 * 4096 * 4096)
        # The closed step has no float32 sums of the loss and no clipping; of the rest nothing is unexplained.
        reconciled = {tuple(list(row.values())[:4]): row for row in step["reconciliation"]["rows"]}
        row = reconciled["forward", "all_reduce", "tp", "bfloat16"]
        assert row["formula_bytes"] == row["traced_bytes"] == reduced["payload_bytes"]
        memory = step["memory_bytes"]
        assert memory["fits"] is (memory["total"] <= memory["usable"])
        assert step["tokens_per_s_per_gpu"] == pytest.approx(8 * 4096 / 8 / step["step"]["seconds"])


@pytest.fixture(scope="module", params=["llama3-8b", "llama3-70b"])
def swept(request):
    return predicted(tp_choices(replace(question(), preset=load_preset(request.param))))


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_tables_name_everything_and_cut_nothing_off(columns, swept):
    console = Console(width=columns, file=StringIO())
    print_prediction(console, swept[2].prediction)
    print_sweep(console, swept, "by degree")
    print_advice(console, advise(swept[2].question, swept))
    print_crossover(console, crossover(swept[2].question), 4096)
    text = console.file.getvalue()
    for word in ("all_reduce", "network", "activations", "fits", "tokens/s a GPU", "predicted", "not counted",
                 "avoid", "fast link", "2D gathered"):  # fmt: skip
        assert word in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= columns


def test_out_has_what_json_prints(call, tmp_path):
    printed = json.loads(call("predict", *ON_DERECHO, "--json", "--out", str(tmp_path / "p.json")).stdout)
    assert json.loads((tmp_path / "p.json").read_text()) == printed


@pytest.mark.parametrize("words", [("predict", *ON_DERECHO), ("predict", *ON_DERECHO, "--sweep", "tp"),
                                   ("advise", "--machine", "derecho", "--gpus", "8", *LLAMA)])  # fmt: skip
def test_without_the_cuda_plugin_torch_is_still_predicted(call, words, monkeypatch):
    monkeypatch.setattr(cli_predict, "trace_steps", without_plugin)
    done = call(*words)
    assert done.exit_code == 0, done.output
    assert "pip install 'tp-parity[a100]'" in done.stdout.replace("\n", " ")
    content = json.loads(call(*words, "--json").stdout)
    first = content if words[0] == "predict" and "--sweep" not in words else content["choices"][1]["prediction"]
    assert first["frameworks"]["torch"]["step"]["seconds"] > 0
    assert first["frameworks"]["jax"] == {"skipped": "no A100 compiler: pip install 'tp-parity[a100]'"}


def test_without_any_trace_the_exit_code_says_so(call, monkeypatch):
    def failed(requests, commands, on_event):
        return {name: [StepTrace(name, one.id, skipped="died") for one in requests] for name in ("torch", "jax")}

    monkeypatch.setattr(cli_predict, "trace_steps", failed)
    for words in (("predict", *ON_DERECHO), ("advise", "--machine", "derecho", "--gpus", "8", *LLAMA)):
        done = call(*words)
        assert done.exit_code == 3
        assert "no torch: died" in done.stdout


def test_a_vit_has_its_plan_and_its_patches(call):
    era5 = Question.of(
        load_machine("derecho"), load_preset("vit-era5"), {"tp": 4}, 8, None, None, "auto", "float32", False
    )
    assert (era5.plan, era5.seq) == ("field", 8 * 16)
    refused(call("predict", *changed(model="vit-era5", seq="64")), "vit-era5: a sequence is its 128 patches")
    refused(call("predict", *changed(model="vit-era5", seq="128", plan="megatron")), "plan 'megatron': there are field")
    refused(call("predict", *ON_DERECHO[:-2]), "llama3-8b: --seq is missing")


def test_a_mesh_without_tp_has_one_of_size_1(call):
    content = json.loads(call("predict", *changed(mesh="fsdp=8"), "--json").stdout)
    assert content["mesh"] == {"fsdp": 8, "tp": 1}
    assert content["frameworks"]["torch"]["step"]["seconds"] > 0


def test_checkpointed_step_is_another_question_to_the_frameworks():
    plain, again = (question(is_checkpointed=flag).request() for flag in (False, True))
    assert (plain.recompute, again.recompute) == (False, True)
    assert plain.id != again.id


def test_flags_of_xla_are_another_question(call):
    plain, told = (question(xla_flags=name).request() for name in ("default", "recommended"))
    assert (plain.xla_flags, told.xla_flags) == ("default", "recommended")
    assert plain.id != told.id
    assert json.loads(call("predict", *ON_DERECHO, "--json").stdout)["xla_flags"] == "default"


def test_checkpoint_is_slower_and_smaller(call):
    plain, again = (
        json.loads(call("predict", *ON_DERECHO, "--json", *words).stdout)["frameworks"]["torch"]
        for words in ((), ("--checkpoint",))
    )
    assert again["step"]["seconds"] > 1.2 * plain["step"]["seconds"]
    assert again["memory_bytes"]["total"] <= plain["memory_bytes"]["total"]
    assert "blocks checkpointed" in call("predict", *ON_DERECHO, "--checkpoint").stdout


def changed(**options):
    words = dict(zip(ON_DERECHO[::2], ON_DERECHO[1::2], strict=True))
    words.update({f"--{name}": value for name, value in options.items()})
    return [word for pair in words.items() for word in pair]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mesh": "fsdp=128,tp=4"}, "mesh fsdp=128,tp=4 has 512 GPUs: derecho has 328 (82 nodes of 4)"),
        ({"mesh": "fsdp=2,tp=3"}, "groups of tp=3 lie unevenly on nodes of 4 GPUs (derecho); tp=2 or tp=4 would work"),
        ({"mesh": "pp=2,tp=4"}, "mesh axis 'pp': there are dp, fsdp, tp, x, y"),
        ({"mesh": "x=2,y=2", "model": "bert-base"}, "models.bert has no form on a grid"),
        ({"mesh": "dp=2,fsdp=2,tp=2"}, "mesh dp=2,fsdp=2,tp=2: dp and fsdp together are not traced"),
        ({"mesh": "tp=4,fsdp=2"}, "mesh tp=4,fsdp=2: tp must be the last axis"),
        ({"mesh": "tp"}, "--mesh 'tp': expected NAME=SIZE"),
        ({"mesh": "tp=4,tp=2"}, "--mesh 'tp=4,tp=2': has 'tp' twice"),
        ({"mesh": "fsdp=1,tp=16"}, "8 key and value heads do not divide over tp=16: take tp=1, 2, 4 or 8"),
        ({"batch": "7"}, "a batch of 7 sequences does not divide over 2 data-parallel parts"),
        ({"plan": "sequence_parallel", "seq": "4098"}, "4098 tokens of a sequence do not divide over tp=4"),
        ({"model": "gpt2", "seq": "2048"}, "gpt2 has 1024 positions: a sequence of 2048 is longer"),
        ({"model": "llama9"}, "model 'llama9': there are"),
        ({"machine": "derecko"}, "machine 'derecko': not known; known: derecho"),
        ({"machine": "nope.toml"}, "machine file nope.toml: there is no such file; known by name: derecho, dgx"),
        ({"plan": "magic"}, "plan 'magic': there are megatron, sequence_parallel"),
        ({"style": "magic"}, "style 'magic': there are auto, typed, manual"),
        ({"dtype": "float16"}, "dtype 'float16': there are bfloat16, float32"),
        ({"xla-flags": "fast"}, "xla-flags 'fast': there are default, recommended"),
        ({"sweep": "pp"}, "--sweep 'pp': there are tp, plan"),
        ({"out": "/nowhere/p.json"}, "--out /nowhere/p.json: there is no directory /nowhere"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(call, options, says):
    refused(call("predict", *changed(**options)), says)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("nic_bytes_per_s = 2.5e+10", "nic_bytes_per_s = -2.5e+10", "nic_bytes_per_s = -25000000000.0: must be"),
        ("hbm_bytes_per_s = 1.555e+12\n", "", "gpu: hbm_bytes_per_s is missing"),
    ],
)
def test_a_machine_file_with_a_wrong_figure_is_refused_in_one_line(call, tmp_path, old, new, says):
    text = (MACHINES / "perlmutter.toml").read_text()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new, 1))
    refused(call("predict", *changed(machine=str(tmp_path / "mine.toml"))), says)
    (tmp_path / "mine.toml").write_text(text)
    assert call("predict", *changed(machine=str(tmp_path / "mine.toml"))).exit_code == 0


def test_advise_refuses_more_gpus_than_there_are(call):
    refused(call("advise", "--machine", "derecho", "--gpus", "329", *LLAMA), "derecho has 328")


def test_advise_says_how_many_gpus_fill_the_nodes(call):
    said = "7 GPUs do not fill nodes of 4 GPUs (derecho); 4 or 8 would work"
    refused(call("advise", "--machine", "derecho", "--gpus", "7", *LLAMA), said)


def refused(done, says):
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert says in done.stderr
    assert done.stderr.startswith("error:")
    assert done.stderr.count("\n") == 1


def test_sweep_over_tp_keeps_gpus_and_batch(call):
    rows = json.loads(call("predict", *ON_DERECHO, "--sweep", "tp", "--json").stdout)["choices"]
    assert [row["mesh"] for row in rows] == ["fsdp=8,tp=1", "fsdp=4,tp=2", "fsdp=2,tp=4", "fsdp=1,tp=8"]
    assert [row["link"] for row in rows] == ["none", "nvlink", "nvlink", "both"]
    assert [row["all_reduce_bytes"] for row in rows] == [2 * 8 * 4096 * 4096 * degree // 8 for degree in (1, 2, 4, 8)]
    assert rows[0]["all_reduce"] is None
    assert rows[3]["all_reduce"]["seconds"] > 4 * rows[2]["all_reduce"]["seconds"]  # it leaves the node
    assert rows[3]["word"] == "avoid"


def test_the_fastest_that_fits_is_recommended():
    choices = predicted(tp_choices(question()))
    words = [verdict.word for verdict in verdicts(choices)]
    times = [choice.seconds for choice in choices]
    assert words.index("recommended") == times.index(min(times)) == 0

    def heavier(trace):  # what of the state tp does not shard does not fit, so that only tp=4 and tp=8 do
        large = not any(entry.axis == "tp" and entry.payload_bytes > 10**8 for entry in trace.collectives)
        return replace(trace, memory=replace(trace.memory, total=60 * 10**9)) if large else trace

    found = verdicts(predicted(tp_choices(question()), heavier))
    assert [verdict.word for verdict in found] == ["avoid", "avoid", "recommended", "avoid"]
    assert found[0].why == "lacks 19.2 GB of memory"


def test_a_degree_that_cannot_be_is_left_out_with_its_reason():
    choices = predicted(tp_choices(question({"fsdp": 3, "tp": 4}, batch=12)))
    assert [verdict.word for verdict in verdicts(choices)][3] == "impossible"
    assert choices[3].refused == "12 GPUs do not divide into groups of 8"


def test_advice_follows_its_three_conditions():
    plain = question({"fsdp": 8})
    no = advise(plain, predicted(tp_choices(plain)))
    assert no.degree == 1
    assert "(8 B a parameter)" in no.conditions[0].figures  # as footprints hold it: four numbers in bfloat16
    assert [one.holds for one in no.conditions] == [False, False, True]
    small = question({"fsdp": 16}, batch=4)  # 4 sequences on 16 GPUs: at least tp=4
    yes = advise(small, predicted(tp_choices(small)))
    assert yes.degree >= 4
    assert yes.conditions[1].holds
    assert "tp=4 the rest" in yes.conditions[1].figures
    assert yes.answer.startswith(f"yes, tp={yes.degree}")
    nothing = advise(
        plain, predicted(tp_choices(plain), lambda one: replace(one, memory=replace(one.memory, total=10**12)))
    )
    assert nothing.degree is None
    assert nothing.conditions[0].holds
    assert "take more GPUs" in nothing.answer
    slow = replace(load_machine("derecho"), nics_per_node=1)
    far = replace(question({"fsdp": 16}, batch=1), machine=slow)  # only tp=8 over two nodes fits a batch of ... none
    assert advise(far, predicted(tp_choices(far))).answer == "no way to lay it out: see the table"


def test_untraced_choices_are_unknown_and_not_recommended():
    choices = [
        Choice("tp=1", question(), prediction=predict(question(), {"torch": StepTrace("torch", "r", skipped="why")}))
    ]
    assert [(verdict.word, verdict.why) for verdict in verdicts(choices)] == [("unknown", "why")]


def test_1d_sends_what_its_formula_says_and_2d_less_from_some_number_on():
    rows = crossover(question({"tp": 4}, "perlmutter"))
    tokens, features = 8 * 4096, 4096
    for gpus in (4, 16, 64, 256, 1024):
        own = {row.plan: row for row in rows if row.gpus == gpus}
        one_d = 4 * 2 * (gpus - 1) / gpus * 2 * tokens * features
        assert own["megatron"].wire_bytes == one_d
        assert own["sequence_parallel"].wire_bytes == pytest.approx(one_d, rel=1e-3)  # and the norms' gradients
        # Forward gathers x and w, backward reduce-scatters dx and dw: (side - 1) / side of each. q, k and v have one
        # x, gate and up another. Norms sum 4 numbers a token, in float32, and their scales.
        side, columns = gpus**0.5, (6144, 4096, 2 * 14336, 4096)
        products = zip((4096, 4096, 4096, 14336), columns, strict=True)
        gathered = sum(2 * 2 * (tokens * k + k * n) / side * (side - 1) / side for k, n in products)
        norms = 2 * (2 * (4 * tokens / side) + 2 * 4096 / side) * 2 * (side - 1) / side
        assert own["gathered"].wire_bytes == pytest.approx(gathered + norms)
    assert first_win(rows, by_time=False) == 4
    assert first_win(rows, by_time=True) == 16
    refused = {(row.plan, row.gpus): row.refused for row in rows}
    assert refused["megatron", 4] == refused["gathered", 64] == ""
    assert refused["megatron", 16] == "8 key and value heads do not divide by 16"
    assert refused["gathered", 256] == "8 key and value heads do not divide by 16"  # 16 x 16
    few = crossover(question({"tp": 4}, "perlmutter", batch=1))
    assert first_win(few, by_time=True) is None  # weights move in 2D: with few tokens they cost more than they save


@pytest.mark.parametrize("plan", ["megatron", "sequence_parallel"])
def test_crossover_refuses_each_plan_for_what_it_cuts_itself_whichever_was_asked(plan):
    rows = crossover(question({"tp": 1}, seq=4098, plan=plan), [4])
    assert {row.plan: row.refused for row in rows} == {
        "megatron": "",
        "sequence_parallel": "4098 tokens of a sequence do not divide by 4",
        "gathered": "",
        "summa": "",
        "stationary": "",
    }
