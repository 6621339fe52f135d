"""Which processes a run starts, with what in each, and what may run beside what."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity import run
from parity.cases import FAMILIES
from parity.cases.family import Selection, cases_of
from parity.files_contract import read_events
from parity.run import Manner, execute, groups

COMMANDS = {"torch": ("torch",), "jax": ("jax",)}
WANTED = Selection(meshes=({"tp": 2}, {"tp": 4}), numerics=("float64", "exact-float64"), variants=("bias",))
CASES = [case for case in cases_of(FAMILIES[0], WANTED) if case.style == "manual"]


def started(manner: Manner) -> list[tuple[str, str, int, int, bool]]:
    return [
        (group.framework, group.role, group.world, group.processes, group.quick)
        for group, _ in groups(CASES, COMMANDS, manner)
    ]


@pytest.mark.parametrize(
    ("manner", "processes", "quick"),
    [
        (Manner(), (1, 1), True),
        (Manner(timings=True), (1, 1), False),
        (Manner(process_a_device=True), (2, 4), True),
        (Manner(device="cuda"), (2, 4), False),
    ],
)
def test_one_process_drives_the_devices_of_the_cpu_and_one_each_a_gpu(manner, processes, quick):
    assert started(manner) == [
        ("torch", "ranks", 2, 2, False),
        ("torch", "ranks", 4, 4, False),
        ("jax", "ranks", 2, processes[0], quick),
        ("jax", "ranks", 4, processes[1], quick),
        ("jax", "trace", 1, 1, False),
    ]


def test_each_program_is_traced_once():
    *_, (trace, case_ids) = groups(CASES, COMMANDS, Manner())
    assert trace.role == "trace"
    assert [case.id for case in CASES if case.id in case_ids] == [
        case.id for case in CASES if case.operands == "normal"
    ]


def overlaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manner: Manner) -> set[str]:
    """The worlds and frameworks of the groups during which the trace runs; it ends when the others have."""
    running, beside = set(), set()

    def run_group(directory, group, case_ids, on_event, stop):
        name = f"{group.framework} {group.role} {group.world}"
        running.add(name)
        for _ in range(100):
            if "jax trace 1" in running:
                beside.update(running)
            stop.wait(0.001)
        running.discard(name)

    monkeypatch.setattr(run, "run_group", run_group)
    execute(tmp_path, CASES, COMMANDS, manner, lambda event: None)
    events = [event["event"] for event in read_events(tmp_path / "groups.jsonl")]
    assert events == ["begin", "group", "group", "group", "group", "ranks done", "end"]
    return beside


def test_a100_programs_are_compiled_beside_the_ranks_of_jax_only(tmp_path, monkeypatch):
    assert overlaps(tmp_path, monkeypatch, Manner()) - {"jax ranks 4"} == {"jax trace 1", "jax ranks 2"}


@pytest.mark.parametrize("manner", [Manner(timings=True), Manner(device="cuda")])
def test_nothing_runs_beside_where_times_count(tmp_path, monkeypatch, manner):
    assert overlaps(tmp_path, monkeypatch, manner) == {"jax trace 1"}


def test_a_group_that_fails_ends_what_runs_beside(tmp_path, monkeypatch):
    stopped = []

    def run_group(directory, group, case_ids, on_event, stop):
        if group.role == "trace":
            stopped.append(stop.wait(60))
        elif group.framework == "jax":
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_group", run_group)
    with pytest.raises(KeyboardInterrupt):
        execute(tmp_path, CASES, COMMANDS, Manner(), lambda event: None)
    assert stopped == [True]
