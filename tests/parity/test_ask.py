"""Questions put to workers that answer, die, hang, or lack a package; the workers are scripts without a framework."""

import sys

import pytest
from typer.testing import CliRunner

import parity.cli_bench
import parity.cli_partitioners
import parity.cli_scaling
from parity import ask as asking
from parity.ask import RanksFailedError, ask, ask_ranks
from parity.cli import app
from parity.partitioners import DIMS, questions_of
from parity.question_contract import LIMITS_S, Answer, CollectiveQuestion, Measured, PairsQuestion
from parity.scaling import pair_questions
from parity.step_contract import StepOrder, StepRequest

QUESTIONS = pair_questions({"M": 256, "D": 256, "F": 256}, (4,))[:2]
LACKS = "import no_such_package"
HANGS = "import sys; sys.stdin.read()"
# Says hello and answers; dies of the question that it is told to.
ANSWERS = """
import json, os, sys
from pathlib import Path
from parity.files_contract import EventLog
from parity.question_contract import Answer, Measured
from parity.worker_contract import read_asked, watch_launcher, work
run, orders, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ["RANK"])
name = "trace" if "trace" in sys.argv else f"rank{rank}"
def do(one):
    if one.id == "DIES":
        raise ValueError("no such product")
    return [Measured(one.id, rank, (1.0, 2.0))] if name != "trace" else [Answer(one.id, output=("S0", "R"))]
watch_launcher()
work(EventLog(run / "FRAMEWORK" / f"{name}.jsonl"), {"backend": "none"}, read_asked(run, orders), do)
"""


def worker(script, framework="torch", dies=""):
    return (sys.executable, "-c", script.replace("FRAMEWORK", framework).replace("DIES", dies))


def nobody(event):
    pass


def test_answers_come_typed_from_every_framework_and_tell_of_their_progress():
    events = []
    commands = {name: worker(ANSWERS, name) for name in ("torch", "jax")}
    found = ask(Answer, QUESTIONS, commands, events.append)
    want = {one.id: Answer(one.id, output=("S0", "R")) for one in QUESTIONS}
    assert found == {"torch": want, "jax": want}
    done = {(event.framework, event.case) for event in events if event.event == "result"}
    assert done == {(name, one.id) for name in commands for one in QUESTIONS}


def test_ranks_answer_each():
    question = CollectiveQuestion("all_reduce", 2, 1024)
    answers = ask_ranks(Measured, [question], "torch", worker(ANSWERS), 2, "cpu", nobody)
    assert answers.environment == {"backend": "none"}
    assert answers.by_id == {question.id: [Measured(question.id, rank, (1.0, 2.0)) for rank in (0, 1)]}


def test_a_failure_stands_in_for_one_answer_and_the_rest_is_answered():
    first, second = QUESTIONS
    commands = {"torch": worker(ANSWERS, dies=first.id)}
    found = ask(Answer, QUESTIONS, commands, nobody, lambda *why: Answer(why[1], skipped=f"{why[0]}: {why[2]}"))
    assert found["torch"][first.id].skipped.startswith("torch: ")
    assert found["torch"][first.id].skipped.endswith("ValueError: no such product")
    assert found["torch"][second.id].output == ("S0", "R")


def test_the_first_failure_ends_the_other_framework_too(tmp_path):
    slow = f"import time; time.sleep(15); open({str(tmp_path / 'ended')!r}, 'w')"
    with pytest.raises(RanksFailedError, match=rf"^jax, asked {QUESTIONS[0].id}: the group did not start: rank 0 .*"
                       "No module named 'no_such_package'$"):  # fmt: skip
        ask(Answer, QUESTIONS, {"torch": worker(slow), "jax": worker(LACKS)}, nobody)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(asking, "START_LIMIT_S", 1.0)
    with pytest.raises(RanksFailedError, match=r"no hello from rank 0 after \d s"):
        ask(Answer, QUESTIONS, {"torch": worker(HANGS)}, nobody)


def test_every_question_has_the_limit_of_its_kind(monkeypatch):
    """The longest of all that are asked: groups know one only."""
    limits = []

    def start(folder, group, *_):
        limits.append(group.case_limit_s)
        raise RanksFailedError

    monkeypatch.setattr(asking, "run_group", start)
    step = StepOrder(StepRequest("step", "models.gpt", "megatron", "auto", {"tp": 2}, {}, {}), {}, {}, ())
    partition, chain = questions_of(["sum_all"], DIMS, "float32")[0], QUESTIONS[0]
    for asked in ([partition], [chain], [step], [partition, step]):
        with pytest.raises(RanksFailedError):
            ask(Answer, asked, {"torch": worker(ANSWERS)}, nobody)
    for one in (CollectiveQuestion("all_reduce", 2, 1024), PairsQuestion(chain, 2)):
        with pytest.raises(RanksFailedError):
            ask_ranks(Answer, [one], "torch", worker(ANSWERS), 2, "cpu", nobody)
    assert limits == [120, 120, 600, 600, 120, 300]


def test_a_question_that_hangs_is_given_up_by_its_limit(monkeypatch):
    monkeypatch.setitem(LIMITS_S, CollectiveQuestion, 1.0)
    question = CollectiveQuestion("all_reduce", 2, 1024)
    hangs = worker(ANSWERS.replace("def do(one):", "def do(one):\n    import time; time.sleep(60)"))
    with pytest.raises(RanksFailedError, match=r"hung for \d s: started but not finished by ranks 0, 1"):
        ask_ranks(Measured, [question], "torch", hangs, 2, "cpu", nobody)


@pytest.mark.parametrize("words", [("partitioners", "sum_all"), ("scaling",), ("bench", "grid", "--forward")])
def test_commands_end_with_one_line_and_exit_code_3(words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for module in (parity.cli_partitioners, parity.cli_scaling, parity.cli_bench):
        monkeypatch.setattr(module, "worker_commands", lambda *_: {"torch": worker(LACKS), "jax": worker(LACKS)})
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 3, done.output
    assert done.stderr.count("\n") == 1
    assert "No module named 'no_such_package'" in done.stderr
    assert list(tmp_path.iterdir()) == []
