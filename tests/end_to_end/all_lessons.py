"""`LESSONS_OF=torch_tp|jax_tp python -m all_lessons`: all four in one group, each after a line with its name."""

from __future__ import annotations

import os
from importlib import import_module

LESSONS = ("e01_basic", "e02_mesh", "e03_grid", "e04_hybrid")


def run(package: str) -> None:
    common = import_module(f"{package}.examples.common")

    def all_lessons(device: str) -> None:
        for name in LESSONS:
            common.say(f"#{name}")
            import_module(f"{package}.examples.{name}").lesson(device)

    common.run(all_lessons)


if __name__ == "__main__":
    run(os.environ["LESSONS_OF"])
