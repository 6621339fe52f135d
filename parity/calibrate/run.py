"""The doors of calibration: a machine file from logs, and a machine checked against a log or a CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity.calibrate.check import Check, check
from parity.calibrate.fit import fit_machine
from parity.calibrate.measurements import CalibrationError, Measurement, read_csv
from parity.calibrate.nccl_log import read_log
from parity.calibrate.plot import plot_fit
from parity.calibrate.write import machine_text
from parity.cost.group import KINDS
from parity.cost.load import load_machine, parse_machine
from parity.cost.machine import Machine


@dataclass(frozen=True)
class Calibration:
    """A fitted machine, the text of its file, how well it fits what it was fitted to, and a picture of that."""

    machine: Machine
    text: str
    residuals: Check
    measurements: tuple[Measurement, ...]

    def plot(self, path: Path) -> None:
        """Write measured points and fitted lines to `path`: .png, .svg, .pdf."""
        plot_fit(self.machine, self.measurements, path)


def read_measurements(paths: Sequence[Path]) -> list[Measurement]:
    """Measurements of all files: *.csv as `read_csv`, any other as the text output of nccl-tests."""
    read: list[Measurement] = []
    for path in paths:
        found = read_csv(path) if path.suffix.lower() == ".csv" else read_log(path)
        if not found:
            raise CalibrationError(f"{path}: no measurement of {', '.join(KINDS)} found")
        read += found
    return read


def calibrate_from_logs(paths: Sequence[Path], name: str, base: str | Path = "perlmutter") -> Calibration:
    """Fit a machine called `name` to logs of nccl-tests (or CSV files). Raises CalibrationError, MachineError.

    `base` is the machine that it is most like: it gives the GPU, the links on paper, and whatever was not measured.
    """
    return calibrate(read_measurements(paths), name, base, ", ".join(path.name for path in paths))


def calibrate(
    measurements: Sequence[Measurement], name: str, base: str | Path = "perlmutter", source: str = "measured"
) -> Calibration:
    """Fit a machine called `name` to measurements, from logs or from the mesh at hand."""
    machine = load_machine(base)
    if not measurements:
        raise CalibrationError(f"{name}: no measurements")
    largest = max(row.gpus_per_node for row in measurements)
    if largest > machine.gpus_per_node:
        raise CalibrationError(
            f"{name}: measured on {largest} GPUs a node, and its base {machine.name} has {machine.gpus_per_node}; "
            "give another base, such as dgx-a100-40"
        )
    most = max(row.nodes for row in measurements)
    machine = replace(machine, description=f"like {machine.name}", max_nodes=max(machine.max_nodes, most))
    fitted = fit_machine(measurements, machine, name, f"fitted to {source}")
    text = machine_text(fitted)
    parse_machine(text, f"fit of {name}")  # what is written must read back, and be possible on paper
    return Calibration(fitted, text, check(fitted, measurements), tuple(measurements))


def check_file(machine: str | Path, path: Path) -> Check:
    """How well a machine (a name or a file) predicts a log or a CSV. Raises CalibrationError, MachineError."""
    return check(load_machine(machine), read_measurements([path]))


def table(result: Check) -> list[dict[str, Any]]:
    """The rows of a check for a table, the totals last."""
    return [dict(vars(row)) for row in (*result.rows, *result.totals)]
