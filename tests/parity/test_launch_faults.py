"""The launcher when ranks crash, hang or report errors: the right rank and case are blamed, and the rest still runs."""

from __future__ import annotations

import re

import pytest
from worker_bench import SOON_S

from parity import launch
from parity.contract import ContractError
from parity.launch import run_group

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
