"""The command `parity calibrate` as people call it: what it writes and prints, and the one line for what it refuses."""

import json
import statistics

import pytest
from typer.testing import CliRunner

from parity.calibrate import check, predict, read_measurements
from parity.cli import app
from parity.cost import Group, load_machine
from parity.cost.peers import dtensor_time, inductor_time, nccl_time

HEAD = "# nThread 1 nGpus 1 minBytes 1024 maxBytes 33554432 step: 2(factor) warmup iters: 5 iters: 20 agg iters: 1\n#\n"
COLUMNS = """#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
"""
FOOT = "# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 24.1\n#\n"


def log_of(time_us, ranks=4):
    """A whole log of all_reduce_perf on one node."""
    places = "".join(
        f"#  Rank {rank:2d} Group  0 Pid {7000 + rank} on nid0001 device {rank:2d} [0x{rank:02x}] NVIDIA A100\n"
        for rank in range(ranks)
    )
    rows = "".join(
        f"{2**power:12d}  {2**power // 4:12d}     float     sum      -1"
        f"  {time_us(2**power):7.2f}    1.00    1.50      0  {time_us(2**power):7.2f}    1.00    1.50      0\n"
        for power in range(10, 26)
    )
    return "# Collective test starting: all_reduce_perf\n" + HEAD + places + COLUMNS + rows + FOOT


def linear_us(size):
    return 20 + size / 2e5


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.out").write_text(log_of(linear_us))
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *words: CliRunner().invoke(app, ["calibrate", *words])


def test_a_log_becomes_a_machine_file_and_a_plot(call, tmp_path):
    done = call("job.out", "--name", "mycluster")
    assert done.exit_code == 0, done.output
    assert "all_reduce, 1 x 4" in done.stdout
    assert (tmp_path / "mycluster.png").read_bytes().startswith(b"\x89PNG")
    machine = load_machine(tmp_path / "mycluster.toml")
    assert machine.name == "mycluster"
    assert machine.source == "fitted to job.out"
    for row in read_measurements([tmp_path / "job.out"]):
        assert predict(machine, row).seconds == pytest.approx(linear_us(row.payload_bytes) * 1e-6, rel=0.03)


def test_out_says_where_and_base_what_was_not_measured(call, tmp_path):
    done = call("job.out", "--name", "mine", "--out", "other.toml", "--base", "polaris", "--json")
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert (figures["file"], figures["plot"]) == ("other.toml", "other.png")
    machine, base = load_machine(tmp_path / "other.toml"), load_machine("polaris")
    assert (machine.nics_per_node, machine.rings) == (base.nics_per_node, base.rings)


def test_check_prints_what_the_library_finds(call, tmp_path):
    done = call("--machine", "perlmutter", "--check", "job.out", "--json")
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    expected = check(load_machine("perlmutter"), read_measurements([tmp_path / "job.out"])).to_json()
    assert {name: figures[name] for name in expected} == json.loads(json.dumps(expected))
    models = {row["model"]: row["median_error"] for row in figures["models"]}
    assert models.keys() == {"parity", "NCCL", "DTensor", "Inductor"}
    assert models["parity"] == figures["totals"][0]["median_error"]
    sizes = [2**power for power in range(10, 26)]
    for name, model in {"NCCL": nccl_time, "DTensor": dtensor_time, "Inductor": inductor_time}.items():
        errors = [
            abs(model(load_machine("perlmutter"), "all_reduce", size, Group(4)) * 1e6 / round(linear_us(size), 2) - 1)
            for size in sizes
        ]
        assert models[name] == pytest.approx(statistics.median(errors), rel=1e-9)


def test_check_tells_the_machine_that_was_measured_from_another(call):
    assert call("job.out", "--name", "mine").exit_code == 0
    own, other = (json.loads(call("--machine", name, "--check", "job.out", "--json").stdout)["totals"][0]
                  for name in ("mine.toml", "perlmutter"))  # fmt: skip
    assert own["p90_error"] < 0.04 < 0.2 < other["median_error"]
    assert own["coverage"] > 0.9 > 0.5 > other["coverage"]


@pytest.mark.parametrize("command", [("--machine", "perlmutter", "--check", "job.out"), ("job.out", "--name", "mine")])
def test_tables_fit_a_terminal_of_80_columns(call, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    lines = call(*command).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


CSV = "collective,n_gpus,n_nodes,bytes,time_us\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "give one of"),
        (("job.out", "--local"), "give one of"),
        (("job.out",), "--name is missing"),
        (("job.out", "--name", "a/b"), "--name 'a/b'"),
        (("job.out", "--name", "mine", "--out", "mine.json"), "must end in .toml"),
        (("job.out", "--name", "mine", "--out", "nowhere/mine.toml"), "no directory nowhere"),
        (("job.out", "--name", "mine", "--base", "perlmuter"), "'perlmuter': not known"),
        (("job.out", "--name", "mine", "--machine", "perlmutter"), "--machine goes with --check"),
        (("gone.log", "--name", "mine"), "gone.log: cannot be read"),
        (("empty.log", "--name", "mine"), "empty.log: no measurement of all_reduce"),
        (("wrong.csv", "--name", "mine"), "column 'n_nodes' is missing"),
        (("one.csv", "--name", "mine"), "no measurement of more than one GPU"),
        (("eight.csv", "--name", "mine"), "give another base, such as dgx-a100-40"),
        (("--check", "job.out"), "--machine is missing"),
        (("--machine", "nowhere", "--check", "job.out"), "machine 'nowhere': not known; known: derecho"),
        (("--machine", "bad.toml", "--check", "job.out"), "bad.toml"),
        (("--machine", "perlmutter", "--check", "gone.csv"), "gone.csv: cannot be read"),
        (("--machine", "perlmutter", "--check", "empty.log"), "empty.log: no measurement"),
        (("--machine", "perlmutter", "--check", "wrong.csv"), "column 'n_nodes' is missing"),
        (("--machine", "perlmutter", "--check", "eight.csv"), "group of 8 GPUs a node: perlmutter has 4"),
        (("--local", "--device", "tpu"), "--device 'tpu': there are cpu, cuda"),
        (("--local", "--device", "cuda"), "name with --base"),
        (("--local", "--ranks", "64"), "--ranks 64: the base local has 8"),
        (("--local", "--torch-python", "no-such-python"), "no Python interpreter 'no-such-python'"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2_and_writes_nothing(call, tmp_path, words, says):
    (tmp_path / "empty.log").write_text("srun: error: nid0001: task 0: Segmentation fault\n")
    (tmp_path / "wrong.csv").write_text("collective,n_gpus,size,time_us\nall_reduce,4,1024,10\n")
    (tmp_path / "one.csv").write_text(CSV + "all_reduce,1,1,1024,10\n")
    (tmp_path / "eight.csv").write_text(CSV + "all_reduce,8,1,1024,10\n")
    (tmp_path / "bad.toml").write_text('name = "bad"\nnics_per_node = -1\n')
    before = sorted(tmp_path.iterdir())
    done = call(*words)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


def test_held_out_predicts_what_it_did_not_see(call, tmp_path):
    def odd_us(size):
        return linear_us(size) * (3 if size == 2**14 else 1)

    (tmp_path / "odd.out").write_text(log_of(odd_us))
    done = call("--machine", "perlmutter", "--check", "odd.out", "--held-out", "--json")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert content["held_out"] is True
    (total,) = content["totals"]
    assert total["num_points"] == 2 * (16 - 2)  # in and out of place, all sizes but the ends
    assert {row["model"] for row in content["models"]} == {"parity", "NCCL", "DTensor", "Inductor"}
    # The odd size is far off, as it was not seen; a fit to all of them goes through it.
    call("odd.out", "--name", "odd")
    seen = json.loads(call("--machine", "odd.toml", "--check", "odd.out", "--json").stdout)
    assert seen["held_out"] is False

    def worst(figures):
        return max(row["p90_error"] for row in figures["rows"])

    assert worst(content) > 0.5
    assert worst(seen) < 0.1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("job.out", "--name", "x", "--held-out"), "--held-out goes with --check"),
        (
            ("--machine", "perlmutter", "--check", "few.out", "--held-out"),
            "too few sizes and node counts to hold any out",
        ),
    ],
)
def test_what_cannot_be_held_out_is_said(call, tmp_path, words, says):
    few = [line for line in log_of(linear_us).splitlines(keepends=True) if "float" not in line or "1048576 " in line]
    (tmp_path / "few.out").write_text("".join(few))
    done = call(*words)
    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
