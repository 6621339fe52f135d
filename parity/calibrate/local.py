"""Measure the collectives of the machine at hand, with a framework's worker processes, and fit a machine to them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from parity.ask import OnEvent, ask_ranks
from parity.calibrate.measurements import CalibrationError, Measurement
from parity.calibrate.run import Calibration, calibrate
from parity.cost.group import KINDS
from parity.cost.load import load_machine
from parity.question_contract import CollectiveQuestion, Measured

RANKS = (2, 4)
SMALLEST_BYTES = 2**10
LARGEST_BYTES = {"cpu": 2**24, "cuda": 2**30}


def questions(ranks: int, device: str) -> list[CollectiveQuestion]:
    """What a group of that many ranks is asked: payloads doubling, each a whole number of floats."""
    sizes, size = [], SMALLEST_BYTES
    while size <= LARGEST_BYTES[device]:
        sizes.append(max(size // (4 * ranks), 1) * 4 * ranks)
        size *= 2
    return [CollectiveQuestion(kind, ranks, size) for kind in KINDS for size in sizes]


def check_place(ranks: Sequence[int], device: str, base: str) -> None:
    """Refuse what cannot be measured or fitted before anything starts. Raises CalibrationError, MachineError."""
    if device not in LARGEST_BYTES:
        raise CalibrationError(f"--device {device!r}: there are {', '.join(LARGEST_BYTES)}")
    machine = load_machine(base)
    if max(ranks) > machine.gpus_per_node:
        raise CalibrationError(f"--ranks {max(ranks)}: the base {machine.name} has {machine.gpus_per_node} on a node")


def calibrate_local(
    framework: str,
    command: Sequence[str],
    name: str,
    base: str,
    ranks: Sequence[int],
    device: str,
    on_event: OnEvent,
) -> Calibration:
    """Fit a machine called `name` to what `framework` measures in groups of so many ranks.

    `command` starts a worker. Raises as `ask_ranks` does.
    """
    measurements: list[Measurement] = []
    for number in ranks:
        asked = questions(number, device)
        answers = ask_ranks(Measured, asked, framework, command, number, device, on_event)
        source = source_of(framework, answers.environment)
        measurements += combine(asked, answers.by_id, source)
    return calibrate(measurements, name, base, source)


def combine(
    asked: Sequence[CollectiveQuestion], answers: Mapping[str, Sequence[Measured]], source: str
) -> list[Measurement]:
    """Of each question the median over the calls of the slowest rank's seconds; none where no rank has any."""
    measurements = []
    for one in asked:
        if slowest := [max(call) for call in zip(*(rank.times_s for rank in answers[one.id]), strict=True)]:
            time_s = statistics.median(slowest)
            measurements.append(Measurement(one.kind, one.payload_bytes, one.num_ranks, 1, False, time_s, 1, source))
    return measurements


def source_of(framework: str, environment: Mapping[str, Any]) -> str:
    """What was measured with what, for the machine file."""
    version, backend, device = (environment[key] for key in (framework, "backend", "device"))
    return f"{framework} {version}, {backend} on {device}, one call at a time, here"
