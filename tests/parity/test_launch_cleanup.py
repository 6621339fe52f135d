"""The launcher leaves no process behind, whatever ends it: an exception, a signal, a request from another thread."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest
from worker_bench import COMMAND, processes_marked, wait_until_gone

from parity.launch import run_group


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
