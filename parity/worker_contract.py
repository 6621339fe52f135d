"""What the workers of both frameworks do alike: read the cases of a run, name files, and end when the launcher does.

Workers import this module, as they do `parity.contract`.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from parity.contract import Case


def read_cases(run: Path) -> dict[str, Case]:
    """The cases of a run, by id."""
    return {data["id"]: Case.from_json(data) for data in json.loads((run / "run.json").read_text())["cases"]}


def file_name(case_id: str, ending: str) -> str:
    """The name of a file about one case, step or question."""
    return f"{case_id.replace('/', '.')}.{ending}"


def watch_launcher() -> None:
    """Exit when the launcher does: it holds the other end of our standard input."""

    def watch() -> None:
        while os.read(0, 1):  # sys.stdin would be locked when the interpreter shuts down
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
