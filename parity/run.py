"""Runs cases: writes the inputs, then starts the worker groups in the order that disturbs timings least."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.cases import family_of
from parity.contract import FRAMEWORKS, Case
from parity.files_contract import EventLog
from parity.gpus import check_cuda_build
from parity.group_logs import done_cases, retry_errors
from parity.inputs import make_inputs
from parity.interpreter import find_interpreter
from parity.launch import START_LIMIT_S, Group, Progress, run_group, signals_raise
from parity.rundir import check_new, inputs_path, read_run, write_inputs, write_run

Command = tuple[str, ...]  # up to and without the run directory: ("python", "-m", "torch_tp.worker")

SETTINGS = ("device", "process_a_device", "timings")


@dataclass(frozen=True)
class Manner:
    """How the cases of a run are run; `run.json` keeps SETTINGS, for the rest of the run to be run alike."""

    device: str = "cpu"  # or "cuda"
    process_a_device: bool = False  # JAX on the CPU: not one process for all devices, but as on GPUs
    timings: bool = False  # times are to be compared: XLA optimises in full, and nothing runs beside the ranks
    case_limit_s: float = 120.0  # how long a rank may say nothing

    @property
    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SETTINGS}


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
                case.num_batches if case.task == "train" else 0,
            )
            write_inputs(directory, case, *inputs)


def start_run(directory: Path, cases: Sequence[Case], settings: Mapping[str, Any]) -> None:
    """Lay out the directory of a run: its inputs, then `run.json`, so that what cannot be made leaves no run.

    Raises ContractError if the directory holds a run or cannot be written, NotExactError for inputs that cannot be.
    """
    check_new(directory)
    prepare_inputs(directory, cases)
    write_run(directory, cases, settings)


def begun_run(directory: Path, case_limit_s: float) -> tuple[list[Case], Manner]:
    """The cases of a run and how it began. Raises as `read_run` does."""
    run = read_run(directory)
    return run.cases, Manner(**{name: run.settings[name] for name in SETTINGS}, case_limit_s=case_limit_s)


def resume_run(directory: Path) -> None:
    """Allow the cases that were given up to run again, forgetting why: only once nothing can refuse to run them."""
    for framework in FRAMEWORKS:
        retry_errors(directory, framework)


def groups(cases: Sequence[Case], commands: Mapping[str, Command], manner: Manner) -> Iterator[tuple[Group, list[str]]]:
    """The worker groups with the cases of each: one for each framework and number of devices, one that compiles for
    A100s.

    In JAX one process drives all devices of the CPU, and compiles a program once for all, and quickly, which makes
    slower programs: unless `manner` says otherwise.
    """
    device, limit_s = manner.device, manner.case_limit_s
    by_world = defaultdict(list)
    for case in cases:
        by_world[case.num_devices].append(case.id)
    for framework in FRAMEWORKS:
        is_jax_on_cpu = framework == "jax" and device == "cpu"
        quick = is_jax_on_cpu and not manner.timings
        for world, case_ids in sorted(by_world.items()):
            local = world if is_jax_on_cpu and not manner.process_a_device else 1
            command = commands[framework]
            yield Group(framework, "ranks", world, command, device, limit_s, START_LIMIT_S, local, quick), case_ids
    programs = list({case.program: case.id for case in reversed(cases)}.values())[::-1]
    yield Group("jax", "trace", 1, commands["jax"], "cpu", limit_s, START_LIMIT_S), programs


def undone(
    directory: Path, cases: Sequence[Case], commands: Mapping[str, Command], manner: Manner
) -> Counter[tuple[str, str]]:
    """How many cases are left to do, by framework and role."""
    left: Counter[tuple[str, str]] = Counter()
    for group, case_ids in groups(cases, commands, manner):
        done = done_cases(directory, group.framework, group.role, group.processes)
        left[group.framework, group.role] += len(set(case_ids) - done)
    return left


def worker_commands(torch_python: str, jax_python: str, device: str = "cpu") -> dict[str, Command]:
    """How each framework's worker is called.

    Raises LaunchError for an interpreter that is missing, or lacks the framework or, where the device is cuda, its use.
    """
    pythons = {"torch": torch_python, "jax": jax_python}
    found = {name: find_interpreter(pythons[name], name) for name in FRAMEWORKS}
    for name in FRAMEWORKS if device == "cuda" else ():
        check_cuda_build(found[name], name)
    return {name: (found[name], "-m", f"{name}_tp.worker") for name in FRAMEWORKS}


def execute(
    directory: Path,
    cases: Sequence[Case],
    commands: Mapping[str, Command],
    manner: Manner,
    on_event: Callable[[Progress], None],
) -> None:
    """Run what is not done yet of the cases, and write all results into the directory.

    One group of ranks after the other: both frameworks at once would disturb each other. On the CPU the process that
    compiles for A100s runs beside those of JAX, which leave it a core, unless times are to be compared.
    """
    log, stop = EventLog(directory / "groups.jsonl"), threading.Event()
    log.append("begin")
    *ranks, trace = groups(cases, commands, manner)
    is_beside = manner.device == "cpu" and not manner.timings

    def run(group: Group, case_ids: list[str]) -> None:
        run_group(directory, group, case_ids, on_event, stop)

    with signals_raise(), ThreadPoolExecutor(1) as pool:
        try:
            compiled = None
            for group, case_ids in ranks:
                if compiled is None and group.framework == "jax" and is_beside:
                    compiled = pool.submit(run, *trace)
                log.append("group", framework=group.framework, world=group.world)
                run(group, case_ids)
            log.append("ranks done")
            if compiled is None:
                run(*trace)
            else:
                compiled.result()
        finally:
            stop.set()
    log.append("end")
