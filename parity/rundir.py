"""The directory of a run: the cases (`run.json`, `inputs/`) and the results that the workers wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from parity.contract import FRAMEWORKS, SCHEMA_VERSION, Case, ContractError, Result, Shard, Trace
from parity.files_contract import load_arrays, read_events, save_arrays


@dataclass
class Answers:
    """The results and errors that one framework's workers wrote."""

    environment: dict[str, Any] = field(default_factory=dict)
    results: dict[str, list[Result]] = field(default_factory=dict)  # by case, in order of rank
    traces: dict[str, Trace] = field(default_factory=dict)
    errors: dict[tuple[str, str], str] = field(default_factory=dict)  # by (role, case)


@dataclass
class Run:
    """A run as read from its directory."""

    directory: Path
    settings: dict[str, Any]
    cases: list[Case]
    answers: dict[str, Answers]

    def inputs(self, case: Case) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(parameters, batch) of a case, as the workers got them."""
        arrays = load_arrays(inputs_path(self.directory, case))
        params = {name.removeprefix("params."): array for name, array in arrays.items() if name.startswith("params.")}
        return params, {name: array for name, array in arrays.items() if not name.startswith("params.")}

    def shards(self, framework: str, result: Result) -> dict[str, tuple[Shard, np.ndarray]]:
        """What one rank held at the end of a case."""
        arrays = load_arrays(self.directory / framework / "arrays" / result.arrays)
        if missing := set(result.shards) - set(arrays):
            raise ContractError(f"{result.arrays}: {min(missing)!r} is reported and not there")
        return {name: (shard, arrays[name]) for name, shard in result.shards.items()}

    def trace(self, case: Case) -> Trace | None:
        """What was traced for the case's program, for whichever seed."""
        return self._traces.get(case.program)

    @cached_property
    def _traces(self) -> dict[str, Trace]:
        programs = {case.id: case.program for case in self.cases}
        return {programs[case_id]: trace for case_id, trace in self.answers["jax"].traces.items()}

    def hlo(self, framework: str, file: str) -> str:
        """The text of a compiled program."""
        path = self.directory / framework / "hlo" / file
        try:
            return path.read_text()
        except OSError as error:
            raise ContractError(f"{path}: {error.strerror}") from error


def inputs_path(directory: Path, case: Case) -> Path:
    """Where the state and the batch of a case are."""
    return directory / "inputs" / f"{case.inputs}.safetensors"


def write_inputs(
    directory: Path, case: Case, params: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
) -> None:
    """Write the state and batch of a case for the workers."""
    save_arrays(inputs_path(directory, case), {f"params.{name}": array for name, array in params.items()} | dict(batch))


def check_new(directory: Path) -> None:
    """Make the directory of a run. Raises ContractError if it cannot be made or holds something already."""
    if (directory / "run.json").exists():
        raise ContractError(f"{directory} holds a run already; --resume it, or give another --out")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ContractError(f"{directory} is not empty; give another --out")
    except OSError as error:
        raise ContractError(f"{directory}: cannot be written ({error.strerror})") from error


def write_run(directory: Path, cases: Sequence[Case], settings: Mapping[str, Any]) -> None:
    """Write `run.json`."""
    content = {"schema_version": SCHEMA_VERSION, "settings": settings, "cases": [case.to_json() for case in cases]}
    (directory / "run.json").write_text(json.dumps(content, indent=1))


def read_run(directory: Path) -> Run:
    """Read a run, finished or not. Raises ContractError if it is not a run or has another schema version."""
    path = directory / "run.json"
    try:
        content = json.loads(path.read_text())
        version, settings = content["schema_version"], content["settings"]
    except OSError as error:
        why = "there is no run.json" if isinstance(error, FileNotFoundError) else f"{path}: {error.strerror}"
        raise ContractError(f"{directory} is not the directory of a run: {why}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ContractError(f"{path} is damaged: {type(error).__name__} {error}") from error
    if version != SCHEMA_VERSION:
        raise ContractError(f"{path} has schema version {version}; this parity reads {SCHEMA_VERSION}: run it again")
    try:
        cases = [Case.from_json(data) for data in content["cases"]]
        answers = {framework: _read_answers(directory / framework) for framework in FRAMEWORKS}
    except (KeyError, TypeError) as error:
        raise ContractError(f"{directory}: a record lacks or has an unknown field ({error})") from error
    return Run(directory, settings, cases, answers)


def _read_answers(folder: Path) -> Answers:
    answers = Answers()
    for path in sorted(folder.glob("rank*.jsonl"), key=lambda path: int(path.stem.removeprefix("rank"))):
        for event in read_events(path):
            if event["event"] == "hello":
                answers.environment = answers.environment or event["environment"]
            elif event["event"] == "result":
                for result in map(Result.from_json, event["results"]):
                    others = [kept for kept in answers.results.get(result.case, []) if kept.rank != result.rank]
                    answers.results[result.case] = [*others, result]
    for event in read_events(folder / "trace.jsonl"):
        if event["event"] == "trace":
            trace = Trace.from_json(event["trace"])
            answers.traces[trace.case] = trace
    for event in read_events(folder / "launcher.jsonl"):
        if event["event"] == "error":
            answers.errors[event["role"], event["case"]] = event["message"]
        elif event["event"] == "retry":
            answers.errors.clear()
    return answers
