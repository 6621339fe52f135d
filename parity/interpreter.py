"""The frameworks' Python interpreters: whether they have what a worker imports, and how it finds the project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

OLDEST_PYTHON = (3, 11)
CHECK_LIMIT_S = 60.0  # a cold network file system can take long to start Python
FRAMEWORK_MODULES = {"torch": ("torch",), "jax": ("jax", "flax")}
CONTRACT_MODULES = ("numpy", "ml_dtypes", "safetensors")

# find_spec returns a spec without origin for a bare directory, such as an uninstalled package leaves behind.
_PROBE = """
import importlib.util, json, sys
specs = {name: importlib.util.find_spec(name) for name in sys.argv[1:]}
print(json.dumps([sys.version_info[:2], [name for name, spec in specs.items() if spec is None or not spec.origin]]))
"""


class LaunchError(Exception):
    """Workers that cannot be started as configured; the message is one line for the user."""


def find_interpreter(python: str, framework: str) -> str:
    """The path of `python`, a path or a name on PATH, after checking what is installed there; imports no framework.

    Raises LaunchError, naming the option and what to install, if it is missing, too old, or lacks the framework, the
    project, or the packages that the contract needs.
    """
    option = f"--{framework}-python"
    path = shutil.which(python)
    if path is None:
        raise LaunchError(f"no Python interpreter {python!r}: name one that has {framework} with {option}")
    version, missing = _probe(path, framework, option)
    if version < OLDEST_PYTHON:
        found, needed = (".".join(map(str, numbers)) for numbers in (version, OLDEST_PYTHON))
        raise LaunchError(f"{path} is Python {found}: name one of {needed} or newer with {option}")
    if missing:
        packages = " ".join(_packages_of(missing, framework))
        raise LaunchError(
            f"{path} has no module {missing[0]!r}: install it there with `{path} -m pip install {packages}`, "
            f"or name another interpreter with {option}"
        )
    return path


def worker_environment() -> dict[str, str]:
    """This process's environment, with the project's source tree on PYTHONPATH if it runs from one.

    Not for an installed project: its parent directory holds all packages of this interpreter, which must not shadow
    those of the framework's interpreter.
    """
    environment = dict(os.environ)
    root = Path(__file__).resolve().parent.parent
    if (root / "pyproject.toml").exists():
        inherited = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(root), *([inherited] if inherited else [])])
    return environment


def _probe(path: str, framework: str, option: str) -> tuple[tuple[int, int], list[str]]:
    """The version, and the missing modules, the framework's first."""
    modules = (*FRAMEWORK_MODULES[framework], *CONTRACT_MODULES, "parity", f"{framework}_tp")
    try:
        probe = subprocess.run(
            [path, "-c", _PROBE, *modules],
            env=worker_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHECK_LIMIT_S,
        )
        version, missing = json.loads(probe.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise LaunchError(f"{path} does not run as a Python interpreter: name another with {option}") from error
    return (version[0], version[1]), missing


def _packages_of(missing: list[str], framework: str) -> list[str]:
    """The arguments for pip: all of a framework's packages together, so that their versions match."""
    if missing[0] in FRAMEWORK_MODULES[framework]:
        return list(FRAMEWORK_MODULES[framework])
    if missing[0] in CONTRACT_MODULES:
        return [name for name in missing if name in CONTRACT_MODULES]
    return ["--no-deps", "tp-parity"]
