"""How commands end."""

from __future__ import annotations

import pytest
import typer

from parity.cli_common import RefusedError, one_line_errors
from parity.processes import ProcessDiedError


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RefusedError("no such mesh"), 2, "error: no such mesh"),
        (ProcessDiedError("a process was killed"), 3, "error: a process was killed"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_end_is_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    with pytest.raises(typer.Exit) as ended, one_line_errors():
        raise error
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == f"{line}\n"
