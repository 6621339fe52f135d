"""The commands that put questions to both frameworks, from the shell to the table."""

import json
import subprocess
import sys
from pathlib import Path

from parity.ask import ask_collectives
from parity.partitioners import DIMS, questions_of, rows_of
from parity.scaling import DIMS as SIZES
from parity.scaling import curve_of, pair_questions

PARITY = (sys.executable, "-m", "parity.cli")


def parity(*arguments):
    return subprocess.run([*PARITY, *arguments], capture_output=True, text=True, timeout=240)


def test_both_partitioners_answer():
    done = parity("partitioners", "sum_all", "softmax", "--json", "--dims", "M=64,K=32", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["summary"]["all"]["rows"] == 18
    rows = {(row["program"], *map(tuple, row["layouts"])): row for row in content["rows"]}
    # A scalar over two devices of an axis: 4 bytes, 2 (n-1)/n of which come; over four of both 6.
    for name in ("torch", "jax"):
        assert rows["sum_all", ("S0", "R")][name]["received_bytes"] == 4
        assert rows["sum_all", ("S0", "S1")][name]["received_bytes"] == 6
        assert rows["sum_all", ("R", "R")][name]["collectives"] == []
    # Softmax over a sharded dim: DTensor gathers the shard of 64 x 16 that it lacks, XLA all-reduces maxima and sums.
    row = rows["softmax", ("S1", "R")]
    assert (row["torch"]["received_bytes"], row["jax"]["received_bytes"]) == (64 * 16 * 4, 2 * 64 * 4)
    assert row["fewer"] == "jax"


def test_without_the_plugin_torch_answers_alone():
    questions = [*questions_of(["sum_all"], DIMS, "float32")[:2], *pair_questions(SIZES, (4,))[:1]]
    jax = (sys.executable, str(Path(__file__).with_name("without_plugin_worker.py")))
    commands = {"torch": (sys.executable, "-m", "torch_tp.worker"), "jax": jax}
    answers = ask_collectives(questions, commands, lambda event: None)
    assert all("tp-parity[a100]" in answers["jax"][one.id].skipped for one in questions)
    first, second = rows_of(questions[:2], answers)
    assert (first.fewer, second.fewer) == ("", "")
    assert second.received == (4, None)  # x is R,S0: a sum over y
    assert not curve_of("megatron", SIZES, {"torch": answers["torch"]}, (4,)).differs


def test_the_grid_is_timed_in_both():
    sizes = ("--mesh", "x=1,y=2", "--dims", "M=16,K=16,N=16", "--panel", "4")
    done = parity("bench", "grid", "--forward", *sizes, "--pairs", "2", "--json")
    assert done.returncode == 0, done.stderr
    for ratios in json.loads(done.stdout).values():
        assert [one["plan"] for one in ratios] == ["summa", "stationary"]
        assert all(len(one["ratios"]) == 2 and min(one["ratios"]) > 0 for one in ratios)
