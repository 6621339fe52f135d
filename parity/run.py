"""Brings cases to results: inputs, worker groups, in the order that disturbs the timings least."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from parity.cases import family_of
from parity.contract import FRAMEWORKS, Case, EventLog
from parity.inputs import make_inputs
from parity.interpreter import find_interpreter
from parity.launch import Group, Progress, run_group
from parity.rundir import check_new, inputs_path, write_inputs, write_run

START_LIMIT_S = 120.0

Command = tuple[str, ...]  # up to and without the run directory: ("python", "-m", "torch_tp.worker")


def prepare_inputs(directory: Path, cases: Sequence[Case]) -> None:
    """State and batch of every case, written once for all that share them."""
    for case in cases:
        if not inputs_path(directory, case).exists():
            params, batch = family_of(case).shapes(case)
            family = family_of(case)
            inputs = make_inputs(
                case.layer,
                case.options,
                params,
                batch,
                family.ranges(case),
                case.dtype,
                case.operands,
                case.seed,
                family.ignored,
                case.recipe["num_steps"] * case.recipe["num_microbatches"] if case.task == "train" else 0,
            )
            write_inputs(directory, case, *inputs)


def start_run(directory: Path, cases: Sequence[Case], settings: Mapping[str, Any]) -> None:
    """Lay out the directory of a run: its inputs, then `run.json`, so that what cannot be made leaves no run.

    Raises ContractError if the directory holds a run or cannot be written, NotExactError for inputs that cannot be.
    """
    check_new(directory)
    prepare_inputs(directory, cases)
    write_run(directory, cases, settings)


def groups(
    cases: Sequence[Case],
    commands: Mapping[str, Command],
    device: str,
    case_limit_s: float,
    process_a_device: bool = False,
) -> Iterator[tuple[Group, list[str]]]:
    """The worker groups with the cases of each, one after the other: both frameworks at once would disturb each other.

    One group for each framework and number of devices, then the one process that compiles for A100s. In JAX one process
    drives all devices of the CPU, and compiles a program once for all: unless `process_a_device`, as it is on GPUs.
    """
    by_world = defaultdict(list)
    for case in cases:
        by_world[case.num_devices].append(case.id)
    for framework in FRAMEWORKS:
        alone = framework == "jax" and device == "cpu" and not process_a_device
        for world, case_ids in sorted(by_world.items()):
            local = world if alone else 1
            group = Group(framework, "ranks", world, commands[framework], device, case_limit_s, START_LIMIT_S, local)
            yield group, case_ids
    programs = list({case.program: case.id for case in reversed(cases)}.values())[::-1]
    yield Group("jax", "trace", 1, commands["jax"], "cpu", case_limit_s, START_LIMIT_S), programs


def worker_commands(torch_python: str, jax_python: str) -> dict[str, Command]:
    """How each framework's worker is called. Raises LaunchError for an interpreter that is missing or lacks it."""
    pythons = {"torch": torch_python, "jax": jax_python}
    return {name: (find_interpreter(pythons[name], name), "-m", f"{name}_tp.worker") for name in FRAMEWORKS}


def execute(
    directory: Path,
    cases: Sequence[Case],
    commands: Mapping[str, Command],
    device: str,
    case_limit_s: float,
    on_event: Callable[[Progress], None],
    process_a_device: bool = False,
) -> None:
    """Run what is not done yet of the cases, and write all results into the directory."""
    log = EventLog(directory / "groups.jsonl")
    log.append("begin")
    for group, case_ids in groups(cases, commands, device, case_limit_s, process_a_device):
        log.append("group", framework=group.framework, role=group.role, world=group.world)
        run_group(directory, group, case_ids, on_event)
    log.append("end")
