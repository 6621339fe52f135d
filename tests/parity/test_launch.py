"""The launcher with real processes (tests/parity/fake_worker.py): start, order, environment, resume, bad exits."""

from __future__ import annotations

import json
import os
import re

import pytest
from worker_bench import FAKE_WORKER, SOON_S, Bench

from parity import launch
from parity.interpreter import LaunchError

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
