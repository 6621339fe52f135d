"""How fast the plans of the 2D product are on the devices at hand, as ratios to `gathered` in interleaved runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parity.ask import OnEvent, ask_ranks
from parity.question_contract import ChainQuestion, PairedTimes, PairsQuestion

SIZES = {"M": 2048, "K": 2048, "N": 2048}
PANELS = (256, 512, 1024, 2048)


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
            **self.question.to_json(),
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
    framework: str,
    command: Sequence[str],
    questions: Sequence[ChainQuestion],
    device: str,
    num_pairs: int,
    on_event: OnEvent,
) -> list[Ratio]:
    """The ratios of one framework. Raises as `ask_ranks` does."""
    asked = [PairsQuestion(one, num_pairs) for one in questions]
    found = ask_ranks(PairedTimes, asked, framework, command, questions[0].num_devices, device, on_event).by_id
    return [Ratio(one, ratios_of(found[one.id])) for one in questions]


def ratios_of(ranks: Sequence[PairedTimes]) -> tuple[float, ...]:
    """Of each pair the slowest rank's seconds over the slowest rank's seconds of the baseline."""
    baseline = [max(times) for times in zip(*(one.baseline_s for one in ranks), strict=True)]
    times = [max(times) for times in zip(*(one.times_s for one in ranks), strict=True)]
    return tuple(one / base for one, base in zip(times, baseline, strict=True))
