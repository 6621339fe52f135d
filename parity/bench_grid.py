"""How fast the plans of the 2D product are on the devices at hand, as ratios to `gathered` in interleaved runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parity.calibrate.local import RanksFailedError
from parity.files_contract import read_events
from parity.launch import Group, Progress, run_group
from parity.question_contract import ChainQuestion, PairedTimes

SIZES = {"M": 2048, "K": 2048, "N": 2048}
PANELS = (256, 512, 1024, 2048)
START_LIMIT_S, QUESTION_LIMIT_S = 120.0, 300.0


@dataclass(frozen=True)
class Ratio:
    """Seconds of a plan over those of `gathered`: of each pair the slowest rank's, the median and range over pairs."""

    question: ChainQuestion
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self.question),
            "ratios": self.ratios,
            "median": self.median,
            "range": (min(self.ratios), max(self.ratios)),
        }


def bench_questions(
    sizes: Mapping[str, int], mesh: Mapping[str, int], panels: Sequence[int], backward: bool, dtype: str
) -> list[ChainQuestion]:
    """y = x w by `summa` in panels of these widths, and by the plans that have none."""
    plans = [("summa", panel) for panel in panels]
    plans += [("stationary", 0), *([("cannon", 0)] if mesh["x"] == mesh["y"] else [])]
    passes, rows, widths = "both" if backward else "forward", sizes["M"], (sizes["K"], sizes["N"])
    return [
        ChainQuestion(f"{plan}{panel or ''}/{passes}", plan, dict(mesh), rows, widths, panel, backward, dtype)
        for plan, panel in plans
    ]


def bench_grid(
    directory: Path,
    framework: str,
    command: tuple[str, ...],
    questions: Sequence[ChainQuestion],
    device: str,
    num_pairs: int,
    on_event: Callable[[Progress], None],
) -> list[Ratio]:
    """The ratios of one framework. Raises RanksFailedError, and what `run_group` raises."""
    (directory / "questions.json").write_text(json.dumps([asdict(question) for question in questions]))

    def listen(event: Progress) -> None:
        if event.event == "error":
            raise RanksFailedError(f"{framework}, timing {event.case}: {event.message}")
        on_event(event)

    world = questions[0].num_devices
    local = world if framework == "jax" and device == "cpu" else 1  # as `parity run` does it
    command = (*command, "--role", "bench", "--num-pairs", str(num_pairs))
    group = Group(framework, "ranks", world, command, device, QUESTION_LIMIT_S, START_LIMIT_S, local)
    run_group(directory, group, [question.id for question in questions], listen)
    events = [event for path in (directory / framework).glob("rank*.jsonl") for event in read_events(path)]
    answers = [PairedTimes.from_json(one) for event in events if event["event"] == "result" for one in event["results"]]
    return [Ratio(one, ratios_of([answer for answer in answers if answer.case == one.id])) for one in questions]


def ratios_of(ranks: Sequence[PairedTimes]) -> tuple[float, ...]:
    """Of each pair the slowest rank's seconds over the slowest rank's seconds of the baseline."""
    baseline = [max(times) for times in zip(*(one.baseline_s for one in ranks), strict=True)]
    times = [max(times) for times in zip(*(one.times_s for one in ranks), strict=True)]
    return tuple(one / base for one, base in zip(times, baseline, strict=True))
