"""The launcher against workers that crash, hang and lie: tests/parity/fake_worker.py, started as real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from worker_bench import COMMAND, FAKE_WORKER, Bench, processes_marked, wait_until_gone

from parity import launch
from parity.contract import ContractError
from parity.interpreter import LaunchError
from parity.launch import Group, run_group

NEVER_S = 600.0  # no test may pass by waiting for this limit
SOON_S = 1.5


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Every test with it also checks that it leaves no process, dead or alive."""
    monkeypatch.setenv("FAKE_MARK", str(tmp_path))
    before = children()  # other tests may have some: multiprocessing keeps its resource tracker
    yield Bench(tmp_path, Group("fake", "ranks", 2, COMMAND, "cpu", case_limit_s=NEVER_S, start_limit_s=NEVER_S))
    assert processes_marked(tmp_path) == []
    assert children() <= before


def children() -> set[str]:
    """The ids of this process's children, the dead that nobody waited for too."""
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


# Without faults


def test_every_rank_runs_every_case_in_order(bench):
    bench.run("a", "b", "c", "b", world=3)
    assert bench.cases("result") == bench.cases("start") == ["a", "b", "c"]
    for rank in range(3):
        results = [event["results"] for event in bench.log(f"rank{rank}") if event["event"] == "result"]
        assert results == [[{"case": case, "rank": rank}] for case in "abc"]
    assert bench.done(world=3) == {"a", "b", "c"}
    assert not (bench.run_dir / "fake" / "launcher.jsonl").exists()


def test_environment_is_that_of_torchrun(bench, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)))
    bench.run("a", world=3, device="cuda")
    hellos = [bench.log(f"rank{rank}")[0]["environment"] for rank in range(3)]
    for rank, hello in enumerate(hellos):
        assert hello["argv"] == ["--device", "cuda"]
        variables = hello["variables"]
        expected = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
        expected |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "2"}
        assert {name: variables[name] for name in expected} == expected
        assert str(FAKE_WORKER.parents[2]) in variables["PYTHONPATH"].split(os.pathsep)
    assert len({hello["variables"]["MASTER_PORT"] for hello in hellos}) == 1


def test_process_of_several_devices_is_one_rank_and_knows_how_many_it_has(bench):
    bench.run("a", world=4, local_devices=2)
    hellos = [bench.log(f"rank{rank}")[0]["environment"] for rank in range(2)]
    assert [hello["argv"] for hello in hellos] == [["--device", "cpu", "--local-devices", "2"]] * 2
    assert {hello["variables"]["WORLD_SIZE"] for hello in hellos} == {"2"}
    assert bench.log("rank2") == []
    assert bench.done(world=4, local_devices=2) == {"a"}


def test_environment_of_the_user_is_kept(bench, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    bench.run("a", world=1)
    variables = bench.log("rank0")[0]["environment"]["variables"]
    assert variables["OMP_NUM_THREADS"] == "5"
    assert variables["PYTHONPATH"].split(os.pathsep)[-1] == "/nowhere"


def test_trace_role_is_one_process_with_a_log_of_its_own(bench):
    bench.run("a:raise@0", "b", role="trace", world=1)
    assert [event["event"] for event in bench.log("trace")] == ["hello", "start", "error", "hello", "start", "trace"]
    assert bench.log("trace")[0]["environment"]["argv"] == ["--role", "trace"]
    assert bench.done(role="trace", world=1) == {"a:raise@0", "b"}
    assert bench.done() == set(), "neither its results nor its errors count for the ranks"


# A rank fails in a case


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("raise@1", "rank 1 exited with code 1: ValueError('planted in rank 1')"),
        ("exit3@1", "rank 1 exited with code 3: a last line on stdout"),
        ("exit0@2", "rank 2 exited with code 0 before its last case: a last line on stdout"),
        ("SIGKILL@2", "rank 2 was killed by SIGKILL (often for want of memory); then"),
        ("SIGSEGV@0", "rank 0 was killed by SIGSEGV: Fatal Python error: Segmentation fault at fake_worker.py:"),
    ],
)
def test_failure_is_charged_to_its_case_and_rank_and_the_rest_still_runs(bench, fault, what):
    """The other ranks wait in the barrier and lose their peer, so they report errors too."""
    bad = f"b:{fault}"
    bench.run("a", bad, "c", world=3)
    assert bench.cases("error") == [bad]
    assert bench.cases("result") == ["a", "c"]
    assert bench.message(bad).startswith(what)
    assert "\n" not in bench.message(bad)
    others = {0, 1, 2} - {int(fault[-1])}
    assert bench.message(bad).endswith("; then ranks {}, {} failed".format(*sorted(others)))
    assert bench.done(world=3) == {"a", bad, "c"}
    assert bench.starts() == 2


def test_signal_outweighs_an_error_that_tells_nothing_of_a_lost_peer(bench):
    bench.run("a:raise@0/SIGKILL@1")
    message = "rank 1 was killed by SIGKILL (often for want of memory); then rank 0 failed"
    assert bench.message("a:raise@0/SIGKILL@1") == message


def test_case_that_only_some_ranks_finished_has_no_result(bench):
    bench.run("a:late@1")
    assert [event["event"] for event in bench.log("rank0")] == ["hello", "start", "result"]
    assert bench.cases("result") == []
    assert bench.message("a:late@1") == "rank 1 exited with code 4"


def test_case_in_which_a_rank_lags_behind_is_not_charged_for_the_next(bench):
    """Rank 0 is still in a when rank 1 dies in b, and reports the lost peer as an error of a."""
    bench.run("a:lag@0", "b:exit3@1", "c")
    assert [event["case"] for event in bench.log("rank0") if event["event"] == "error"] == ["a:lag@0"]
    assert bench.cases("error") == ["b:exit3@1"]
    assert bench.cases("result") == ["a:lag@0", "c"]


def test_traceback_is_kept_beside_the_message(bench):
    bench.run("a:raise@0", "b:raise@0")
    lines = bench.stderr("b:raise@0").splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: planted in rank 0"
    assert lines.count(lines[0]) == 1, "what earlier processes wrote to the same file is not this failure's"


def test_ranks_with_one_error_are_named_together_on_one_line(bench):
    bench.run("a:raise_alike@0/raise_alike@1")
    assert bench.message("a:raise_alike@0/raise_alike@1").startswith(
        "ranks 0, 1 exited with code 1: ValueError('the same"
    )


def test_rank_that_reports_an_error_is_not_waited_for_long(bench, monkeypatch):
    monkeypatch.setattr(launch, "ERROR_EXIT_S", 0.3)
    bench.run("a:linger@1", "b")
    assert bench.message("a:linger@1") == "rank 1 failed: planted, and no exit"
    assert bench.cases("result") == ["b"]


def test_half_written_line_does_not_spoil_the_log(bench):
    bench.run("a", "b:torn@1", "c")
    kinds = [event["event"] for event in bench.log("rank1")]
    assert kinds == ["hello", "start", "result", "start", "hello", "start", "result"]
    assert bench.done() == {"a", "b:torn@1", "c"}


def test_line_that_is_no_json_is_refused(bench):
    def spoil(progress):
        with (bench.run_dir / "fake" / "rank0.jsonl").open("a") as file:
            file.write("not JSON\n")

    with pytest.raises(ContractError, match=r"rank0\.jsonl"):
        run_group(bench.run_dir, bench.group, ["a", "b:hang@0"], spoil)


# A rank hangs


def test_hang_is_charged_with_who_started_and_where_each_stands(bench):
    bench.run("a", "b:hang@1", "c", case_limit_s=SOON_S)
    message = bench.message("b:hang@1")
    assert re.match(
        r"hung for \d+ s: started but not finished by ranks 0, 1; rank 0 at fake_worker.py:\d+ in ", message
    )
    assert "; rank 1 at fake_worker.py:" in message
    assert message.endswith(" in hang")
    assert "rank 0:\nFatal Python error: Aborted" in bench.stderr("b:hang@1")
    assert bench.cases("result") == ["a", "c"]


def test_hang_before_a_case_names_the_rank_that_never_started_it(bench):
    bench.run("a", "b:hang_before@1", "c", case_limit_s=SOON_S)
    assert ": started but not finished by rank 0, never started by rank 1; " in bench.message("b:hang_before@1")
    assert bench.cases("result") == ["a", "c"]


# The group does not start


def test_first_start_that_fails_gives_up_all_cases_at_once(bench, monkeypatch):
    monkeypatch.setenv("FAKE_START", "exit7@1")
    bench.run("a", "b")
    assert bench.cases("error") == ["a", "b"]
    for case in ("a", "b"):
        assert bench.message(case).startswith("the group did not start: rank 1 exited with code 7: a last line")
    assert bench.starts() == 1


def test_group_without_hello_is_given_up_after_the_start_limit(bench, monkeypatch):
    monkeypatch.setenv("FAKE_START", "hang@1")
    bench.run("a", "b", start_limit_s=SOON_S)
    assert bench.cases("error") == ["a", "b"]
    start = r"the group did not start: no hello from ranks 0, 1 after \d+ s; rank 0 at "
    assert re.match(start, bench.message("a"))


def test_restart_that_fails_once_is_tried_again(bench, monkeypatch):
    monkeypatch.setenv("FAKE_START", "exit7@0#2")
    bench.run("a:exit3@0", "b")
    assert bench.cases("error") == ["a:exit3@0"]
    assert bench.cases("result") == ["b"]
    assert bench.starts() == 3


def test_restart_that_fails_twice_gives_up_the_rest(bench, monkeypatch):
    monkeypatch.setenv("FAKE_START", "exit7@0#2,3")
    bench.run("a:exit3@0", "b", "c")
    assert bench.cases("error") == ["a:exit3@0", "b", "c"]
    assert bench.message("c").startswith("the group did not start: rank 0 exited with code 7")
    assert bench.starts() == 3


def test_command_that_cannot_start_is_an_error_of_the_user(bench):
    with pytest.raises(LaunchError, match=r"cannot start .*no-such-python"):
        bench.run("a", command=(str(bench.run_dir / "no-such-python"),))


# After the last result


def test_bad_exit_after_the_last_result_is_a_warning(bench, monkeypatch):
    monkeypatch.setenv("FAKE_END", "exit5@1")
    bench.run("a")
    assert bench.cases("result") == ["a"]
    assert bench.cases("error") == []
    assert bench.message(None, "warning") == "rank 1 exited with code 5 after its last result"
    assert bench.log("launcher")[0]["stderr"] == "a last line on stdout"


def test_group_that_does_not_exit_is_ended_with_a_warning(bench, monkeypatch):
    monkeypatch.setattr(launch, "EXIT_LIMIT_S", 0.2)
    monkeypatch.setenv("FAKE_END", "hang@1")
    bench.run("a")
    assert bench.cases("error") == []
    assert bench.message(None, "warning") == "rank 1 did not exit after its last result"


# Resume


def write_results(bench: Bench, rank: int, *cases: str, tail: str = "") -> None:
    path = bench.run_dir / "fake" / f"rank{rank}.jsonl"
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps({"event": "result", "results": [{"case": case}]}) + "\n" for case in cases]
    path.write_text("".join(lines) + tail)


def test_resume_starts_nothing_when_all_is_done(bench):
    bench.run("a", "b:exit3@0")
    starts = bench.starts()
    bench.run("a", "b:exit3@0")
    assert bench.starts() == starts == 1, "an error is final, and with it nothing was left for a second group"


def test_resume_runs_only_what_some_rank_has_not_finished(bench):
    write_results(bench, 0, "a", "b")
    write_results(bench, 1, "a", tail='{"event": "result", "results": [{"case": "b')
    assert bench.done() == {"a"}
    bench.run("a", "b")
    assert bench.cases("result") == ["b"]
    assert bench.done() == {"a", "b"}


def test_echo_of_a_lost_peer_is_no_final_error(bench):
    """A launcher that dies between a rank's error and its own verdict leaves the case open."""
    write_results(bench, 0, tail='{"event": "error", "case": "a", "message": "connection reset by peer"}\n')
    assert bench.done() == set()
    bench.run("a")
    assert bench.cases("result") == ["a"]


# No process is left


@pytest.mark.parametrize("fault", ["child@0/exit3@1", "raise@0/stubborn@1"])
def test_children_and_ranks_that_ignore_sigterm_are_ended(bench, fault):
    bench.run(f"a:{fault}")
    assert bench.cases("error") == [f"a:{fault}"]


def test_exception_in_the_harness_ends_the_group(bench):
    def interrupt(progress):
        assert len(processes_marked(bench.run_dir)) == 2, "the search that every test here ends with sees live ones"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_group(bench.run_dir, bench.group, ["a:hang@0"], interrupt)


HARNESS = """
import sys
from pathlib import Path
from parity.launch import Group, run_group
group = Group("fake", "ranks", 2, tuple(sys.argv[2:]), "cpu", 600.0, 600.0)
run_group(Path(sys.argv[1]), group, ["a:hang@1"], lambda progress: print(progress.event, flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_signal_to_the_harness_ends_the_group(bench, number):
    command = [sys.executable, "-c", HARNESS, str(bench.run_dir), *COMMAND]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as harness:
        assert harness.stdout.readline() == "start\n"
        assert len(processes_marked(bench.run_dir)) == 3
        harness.send_signal(number)
    if number == signal.SIGKILL:
        wait_until_gone(bench.run_dir)  # they notice by themselves
    assert harness.returncode != 0


def test_group_in_a_thread_ends_when_it_is_told_to(bench):
    stop, raised = threading.Event(), []

    def run():
        try:
            run_group(bench.run_dir, bench.group, ["a:hang@0"], lambda progress: stop.set(), stop)
        except KeyboardInterrupt as interrupt:
            raised.append(interrupt)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(raised) == 1
    assert bench.cases("error") == []


def test_group_may_be_run_in_a_thread(bench):
    thread = threading.Thread(target=bench.run, args=("a",))
    thread.start()
    thread.join()
    assert bench.cases("result") == ["a"]
