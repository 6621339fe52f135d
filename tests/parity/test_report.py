"""What a comparison, a case and the list of cases look like in a terminal: as wide as it is, the worst last."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from parity import cli_partitioners
from parity.cases import SUITES, family_of, select
from parity.files_contract import load_arrays, save_arrays
from parity.partitioners import DIMS
from parity.report.case_list import describe_cases
from parity.report.detail import render_case
from parity.report.partitioners import print_program
from parity.report.terminal import BRIEF, MOST_REASONS, MOST_ROWS, render

MOVED = [("all_to_all", "y", 2), ("all_reduce", "x+y", 1)]


def printed_by(print_to: Callable[[Console], object], width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        print_to(console)
    return [line.rstrip() for line in capture.get().splitlines()]


def printed(renderable: Any, width: int) -> list[str]:
    return printed_by(lambda console: console.print(renderable), width)


def entry(case_id: str, verdict: str = "pass", reason: str = "", error: float = 0.25) -> dict[str, Any]:
    errors = {framework: {"error_in_bounds": error, "max_ulps": 20500.0} for framework in ("torch", "jax")}
    source = "jit(step)/transpose(jvp())/shard_map/psum_invariant"
    call = {"pass": "backward", "kind": "reduce_scatter", "axis": "fsdp+tp", "dtype": "bfloat16", "count": 12}
    ledger = [{**call, "payload_bytes": 123456, "source": source}]
    timing = {"cold_s": 0.25, "steady_s": 0.001, "repeats": 5, "device": "cpu", "backend": "gloo"}
    return {
        "id": case_id,
        "verdict": verdict,
        "reason": reason,
        "numerics": {"blocks.0.attention.q.w.grad": errors},
        "layouts": {"expected": {"blocks.0.attention.q.w": "D H*E@tp"}},
        "collectives": {"torch": ledger, "jax": ledger, "expected": ledger, "jax_declared": {"skip": "no shard_map"}},
        "timing": {"torch": timing, "jax": timing},
        "rewrites": [],
        "notes": [],
    }


def comparison(cases: list[dict[str, Any]], timings: bool = False) -> dict[str, Any]:
    verdicts = [case["verdict"] for case in cases]
    return {
        "cases": cases,
        "settings": {"timings": timings},
        "environment": {"torch": {"python": "3.11"}, "jax": {"python": "3.11"}},
        "summary": {verdict: verdicts.count(verdict) for verdict in ("pass", "fail", "error", "skip")},
    }


def many(*others: dict[str, Any]) -> dict[str, Any]:
    return comparison([*(entry(f"mlp/megatron/relu/auto/tp{n}/float64") for n in range(MOST_ROWS)), *others])


def test_few_cases_have_a_row_each():
    few = many()  # just as many as have rows
    lines = printed(render(few, 80), 80)
    assert sum("/float64" in line for line in lines) == MOST_ROWS
    assert BRIEF not in lines


def test_of_many_cases_those_that_pass_share_a_row_with_the_worst_error():
    worst = entry("mlp/megatron/relu/auto/tp99/float64", error=0.75)
    text = printed(render(many(worst), 100), 100)
    (row,) = [line for line in text if "mlp/megatron/relu" in line]
    assert row.split() == ["mlp/megatron/relu", "0.75", "0.75", str(MOST_ROWS + 1), "pass"]
    assert BRIEF in text
    everything = printed(render(many(worst), 100, all_rows=True), 100)
    assert sum("/float64" in line for line in everything) == MOST_ROWS + 1


def test_a_finding_among_many_has_a_row_of_its_own_and_its_reason_stands_last():
    bad = [
        entry("mlp/megatron/relu/auto/tp98/float64", "error", "rank 1 exited with code 1"),
        entry("mlp/megatron/relu/auto/tp99/float64", "fail", "jax y: error is 3.4 bounds [D F@tp]", 3.4),
        entry("mlp/megatron/relu/auto/tp97/float64", "skip", "XLA was not asked"),
    ]
    lines = printed(render(many(*bad), 100), 100)
    (row,) = [line for line in lines if line.lstrip().startswith("auto/tp99")]
    assert row.split() == ["auto/tp99/float64", "3.4", "3.4", "1,481,472", "fail"]
    assert f"{MOST_ROWS} pass, 1 skip" in "\n".join(lines)
    assert [line.partition(" ")[0] for line in lines[-6:]] == ["", "skip", "fail", "error", "", "50"]
    assert lines[-1] == "50 pass, 1 skip, 1 fail, 1 error"
    environment = next(index for index, line in enumerate(lines) if line.startswith("torch: python"))
    assert environment < len(lines) - 6


def test_of_very_many_reasons_the_last_are_shown_and_the_rest_counted():
    bad = [entry(f"mlp/megatron/relu/auto/tp{n}/float64", "fail", f"y: error is {n} bounds") for n in range(100, 130)]
    lines = printed(render(many(*bad), 100), 100)
    assert sum("y: error is" in line for line in lines) == MOST_REASONS
    assert "10 more reasons: see comparison.json" in lines


@pytest.mark.parametrize(
    ("verdicts", "style"), [(["skip"] * 5, "yellow"), (["skip"] * 4 + ["fail"], "bold red"), (["fail"] * 5, "bold red")]
)
def test_reasons_that_are_not_shown_are_as_bad_as_the_worst_of_them(verdicts, style):
    all_verdicts = [*verdicts, *["fail"] * MOST_REASONS]
    cases = [entry(f"mlp/a/b/auto/tp{n}/float64", verdict, f"reason {n}") for n, verdict in enumerate(all_verdicts)]
    (line,) = [part for part in render(comparison(cases), 100).renderables if "more reasons" in str(part)]
    assert str(line) == "5 more reasons: see comparison.json"
    assert line.style == style


def test_times_that_were_asked_for_have_a_row_each_where_there_is_room():
    cases = comparison(many()["cases"] + [entry("mlp/megatron/relu/auto/tp99/float64")], timings=True)
    assert sum("250 ms / 1 ms" in line for line in printed(render(cases, 120), 120)) == MOST_ROWS + 1


@pytest.mark.parametrize("width", [80, 120])
def test_a_case_fits_the_terminal_and_nothing_of_it_is_lost(width):
    lines = printed(render_case(entry("models.gpt/megatron/gpt2/manual/tp2/float64")), width)
    assert max(map(len, lines)) <= width
    assert any(line.split()[:3] == ["blocks.0.attention.q.w.grad", "D", "H*E@tp"] for line in lines)
    calls = [line for line in lines if line.startswith("  backward reduce_scatter fsdp+tp bfloat16 123,456 x 12 ")]
    assert len(calls) == 3
    assert "jit(step)/transpose(jvp())/shard_map/psum_invariant" * 3 in "".join(
        line[len("  backward reduce_scatter fsdp+tp bfloat16 123,456 x 12 ") :] for line in lines
    )
    assert "  skip: no shard_map" in lines
    assert "…" not in "".join(lines)


def test_a_case_without_results_has_no_empty_tables():
    broken = entry("mlp/megatron/relu/auto/tp2/float64", "error", "torch: rank 1 exited")
    broken |= {"numerics": {}, "timing": {}, "collectives": {"torch": None, "jax": None, "expected": None}}
    assert printed(render_case(broken), 80) == [f"{broken['id']}: error", "  torch: rank 1 exited"]


def test_tensors_of_a_file_come_in_the_same_order_each_time(tmp_path):
    """safetensors gives them by a hash with a random seed; rows of reports and sums over parameters follow them."""
    names = [f"w{n}" for n in range(20)]
    save_arrays(tmp_path / "a.safetensors", {name: np.zeros(2) for name in reversed(names)})
    assert list(load_arrays(tmp_path / "a.safetensors")) == sorted(names)


def test_partitioners_name_axes_of_the_mesh_as_layouts_do_and_a_row_is_a_line_at_80_columns():
    calls = [SimpleNamespace(kind=kind, axis=axis, count=n) for kind, axis, n in MOVED]
    answer = SimpleNamespace(refused="", collectives=calls, output=("S0", "R"))
    question = SimpleNamespace(id="matmul/S0,S1/S1,S0", layouts=(("S0", "S1"), ("S1", "S0")))
    row = SimpleNamespace(question=question, torch=answer, jax=answer, received=(Fraction(2**27),) * 2, fewer="torch")
    lines = printed_by(lambda console: print_program(console, "matmul: y = x w", [row]), 80)
    (line,) = [line for line in lines if "S0,S1" in line]
    moved = ["2xA2A@y", "AR@x+y", "128.0", "S0,R"]
    assert line.split() == ["S0,S1", "S1,S0", *moved, *moved, "DTensor"]


@pytest.mark.parametrize(("names", "totals"), [(["sum_all"], 1), (["sum_all", "sum_rows"], 3)])
def test_totals_of_all_programs_are_shown_where_there_are_several(monkeypatch, names, totals):
    monkeypatch.setattr(cli_partitioners, "print_program", lambda *_: None)
    counted = dict.fromkeys(
        ("rows", "torch_fewer", "jax_fewer", "equal", "torch_refused", "jax_refused", "jax_types_refuse"), 1
    )
    monkeypatch.setattr(cli_partitioners, "summary_of", lambda _: {**counted, "torch_differs_on_cpu": 0})
    lines = printed_by(
        lambda console: (
            monkeypatch.setattr(cli_partitioners, "console", console),
            cli_partitioners.print_tables({name: [] for name in names}, DIMS, "float32"),
        ),
        200,
    )
    assert sum("DTensor moves fewer bytes" in line for line in lines) == totals


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    "program", ["models.bert/sequence_parallel", "grid.models.gpt", "hybrid.block/fsdp/gpt", "norm"]
)
def test_list_fits_the_terminal_and_names_every_tensor_and_collective(program, width):
    (first, *cases) = select(SUITES["full"], [program])
    alike = [first, *(case for case in cases if case.id.split("/")[:3] == first.id.split("/")[:3])]
    text = describe_cases("heading", alike, width).plain
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    flat = " ".join(line.strip() for line in lines)
    family = family_of(first)
    for name in (*family.shapes(first)[0], *family.batch, "y"):
        assert f"{re.sub(r'blocks.[0-9]+', 'blocks.*', name)} [{family.tensors[name]}]" in flat
    sent = re.findall(r"(?:(\d+) x )?(all_\w+|reduce_scatter|broadcast|permute) \S+ over", flat)
    expected = family.expected(max(alike, key=lambda case: case.num_devices))
    assert sum(int(count or 1) for count, _ in sent) == len(expected)
    # Broken between names only: what is looked for can be found in one line.
    assert all(line.count("[") == line.count("]") for line in lines)
