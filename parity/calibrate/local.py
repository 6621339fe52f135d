"""Measure the collectives of the machine at hand, with a framework's worker processes, and fit a machine to them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from parity.calibrate.measurements import CalibrationError, Measurement
from parity.calibrate.run import Calibration, calibrate
from parity.contract import Measured
from parity.cost.group import KINDS
from parity.cost.load import load_machine
from parity.files_contract import read_events
from parity.launch import Group, Progress, run_group

RANKS = (2, 4)
SMALLEST_BYTES = 2**10
LARGEST_BYTES = {"cpu": 2**24, "cuda": 2**30}
START_LIMIT_S = 120.0
CALLS_LIMIT_S = 120.0  # for all calls of one collective and payload


class RanksFailedError(Exception):
    """A worker died or hung; the message is one line for the user."""


def questions(ranks: int, device: str) -> list[str]:
    """What a group of that many ranks is asked: KIND/RANKS/BYTES, payloads doubling, each a whole number of floats."""
    sizes, size = [], SMALLEST_BYTES
    while size <= LARGEST_BYTES[device]:
        sizes.append(max(size // (4 * ranks), 1) * 4 * ranks)
        size *= 2
    return [f"{kind}/{ranks}/{size}" for kind in KINDS for size in sizes]


def check_place(ranks: Sequence[int], device: str, base: str) -> None:
    """Refuse what cannot be measured or fitted before anything starts. Raises CalibrationError, MachineError."""
    if device not in LARGEST_BYTES:
        raise CalibrationError(f"--device {device!r}: there are {', '.join(LARGEST_BYTES)}")
    machine = load_machine(base)
    if max(ranks) > machine.gpus_per_node:
        raise CalibrationError(f"--ranks {max(ranks)}: the base {machine.name} has {machine.gpus_per_node} on a node")


def calibrate_local(
    directory: Path,
    framework: str,
    command: tuple[str, ...],
    name: str,
    base: str,
    ranks: Sequence[int],
    device: str,
    on_event: Callable[[Progress], None],
) -> Calibration:
    """Fit a machine called `name` to what `framework` measures in groups of so many ranks, logs in `directory`.

    `command` starts a worker. Raises RanksFailedError, and what `run_group` raises.
    """

    def listen(event: Progress) -> None:
        if event.event == "error":
            raise RanksFailedError(f"{framework}, measuring {event.case}: {event.message}")
        on_event(event)

    measurements: list[Measurement] = []
    for number in ranks:
        local = number if framework == "jax" and device == "cpu" else 1  # as `parity run` does it
        measure = (*command, "--role", "measure")
        group = Group(framework, "ranks", number, measure, device, CALLS_LIMIT_S, START_LIMIT_S, local)
        run_group(directory, group, questions(number, device), listen)
    logs = [read_events(path) for path in sorted((directory / framework).glob("rank*.jsonl"))]
    environment = next(event["environment"] for event in logs[0] if event["event"] == "hello")
    source = source_of(framework, environment)
    events = [event for log in logs for event in log if event["event"] == "result"]
    measurements = combine([result for event in events for result in event["results"]], source)
    return calibrate(measurements, name, base, source)


def combine(results: Sequence[dict[str, Any]], source: str) -> list[Measurement]:
    """Of each question the median over the calls of the slowest rank's seconds; none where no rank has any."""
    by_question: dict[str, list[Measured]] = {}
    for data in results:
        measured = Measured.from_json(data)
        by_question.setdefault(measured.case, []).append(measured)
    measurements = []
    for question, answers in by_question.items():
        kind, ranks, payload_bytes = question.split("/")
        if slowest := [max(call) for call in zip(*(answer.times_s for answer in answers), strict=True)]:
            time_s = statistics.median(slowest)
            measurements.append(Measurement(kind, int(payload_bytes), int(ranks), 1, False, time_s, 1, source))
    return measurements


def source_of(framework: str, environment: dict[str, Any]) -> str:
    """What was measured with what, for the machine file."""
    version, backend, device = (environment[key] for key in (framework, "backend", "device"))
    return f"{framework} {version}, {backend} on {device}, one call at a time, here"
