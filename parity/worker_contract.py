"""What the workers of both frameworks do alike: read what is asked, do it in order, and end when the launcher does.

Workers import this module, as they do `parity.contract`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from parity.contract import Case, Trace
from parity.files_contract import EventLog
from parity.question_contract import Question, read_questions
from parity.record import Record

Asked = Case | Question


def read_asked(run: Path, orders: Path) -> dict[str, Asked]:
    """The cases of a run or the questions, by id, that a worker is ordered to do, in this order."""
    asked: Mapping[str, Asked]
    if (run / "run.json").exists():
        asked = {data["id"]: Case.from_json(data) for data in json.loads((run / "run.json").read_text())["cases"]}
    else:
        asked = read_questions(run)
    return {case_id: asked[case_id] for case_id in json.loads(orders.read_text())["case_ids"]}


def work(
    log: EventLog,
    environment: Mapping[str, Any],
    asked: Mapping[str, Asked],
    do: Callable[[Asked], Trace | Sequence[Record]],
) -> None:
    """Do all that is asked; the log has a line for the start of each and for what came of it.

    What raises ends the process: the group is out of step.
    """
    log.append("hello", environment=dict(environment))
    for case_id, question in asked.items():
        log.append("start", case=case_id)
        try:
            done = do(question)
            if isinstance(done, Trace):
                log.append("trace", trace=done.to_json())
            else:
                log.append("result", results=[one.to_json() for one in done])
        except Exception as error:
            traceback.print_exc()
            log.append("error", case=case_id, message=f"{type(error).__name__}: {error}".splitlines()[0])
            sys.stderr.flush()
            os._exit(1)  # leaving in order would wait for peers that wait for us


def file_name(case_id: str, ending: str) -> str:
    """The name of a file that belongs to one case."""
    return f"{case_id.replace('/', '.')}.{ending}"


def watch_launcher() -> None:
    """Exit when the launcher does: it holds the other end of our standard input."""

    def watch() -> None:
        while os.read(0, 1):  # sys.stdin would be locked when the interpreter shuts down
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
