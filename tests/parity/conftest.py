"""The bench that the tests of the launcher share."""

from __future__ import annotations

from pathlib import Path

import pytest
from worker_bench import COMMAND, NEVER_S, Bench, processes_marked

from parity.launch import Group


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Every test with it also checks that it leaves no process, dead or alive."""
    monkeypatch.setenv("FAKE_MARK", str(tmp_path))
    before = children()  # other tests may have some: multiprocessing keeps its resource tracker
    yield Bench(tmp_path, Group("fake", "ranks", 2, COMMAND, "cpu", case_limit_s=NEVER_S, start_limit_s=NEVER_S))
    assert processes_marked(tmp_path) == []
    assert children() <= before


def children() -> set[str]:
    """The ids of this process's children, including those that have exited and were not waited for."""
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}
