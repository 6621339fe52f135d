"""Interpreters, packages against the project's pins, extras, CUDA wheels, and the precision of float32 products."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from parity.doctor.place import COMMAND_LIMIT_S, Finding, Place, check

# Who needs what: a framework's interpreter its own and the contract's packages, the harness all the others.
OWN = {"torch": ("torch",), "jax": ("jax", "flax", "optax", "orbax-checkpoint")}
CONTRACT = ("numpy", "ml-dtypes", "safetensors")
EXTRAS = (
    (
        "a100",
        "jax",
        ("jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12"),
        "what XLA sends on A100s is not judged or predicted",
    ),
    ("data", "parity", ("scikit-learn",), "parity train --model vit has no images"),
)
PRECISION_VARIABLES = ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "JAX_DEFAULT_MATMUL_PRECISION")
PYPROJECT = "pyproject.toml"
PRECISION = "https://docs.jax.dev/en/latest/_autosummary/jax.default_matmul_precision.html"
APART = "give each framework an environment of its own: --torch-python, --jax-python"

Packages = Mapping[str, dict[str, Any] | None]  # by side; None where it is not known

_PROBE = """
import importlib.metadata, itertools, json, platform, re
found = {}
for one in importlib.metadata.distributions():
    if one.name:
        found.setdefault(re.sub("[-_.]+", "-", one.name).lower(), one)
files = {name: set(map(str, one.files or ())) for name, one in found.items() if name.startswith("nvidia-")}
files = {name: {file for file in own if "/lib/" in file and ".so" in file} for name, own in files.items()}
print(json.dumps({
    "python": platform.python_version(),
    "versions": {name: one.version for name, one in found.items()},
    "requires": {name: found[name].requires or [] for name in found if re.match("torch$|jax($|-cuda)", name)},
    "shared": [[a, b, min(files[a] & files[b])] for a, b in itertools.combinations(files, 2) if files[a] & files[b]],
}))
"""


def read_requirements() -> list[Requirement]:
    """What the project takes, and as extra "tested" what it was tested with: of its source tree, or as installed."""
    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if not pyproject.exists():
        return [Requirement(line) for line in requires("tp-parity") or []]
    project = tomllib.loads(pyproject.read_text())["project"]
    tested = [f'{line}; extra == "tested"' for line in project["optional-dependencies"]["tested"]]
    return [Requirement(line) for line in (*project["dependencies"], *tested)]


def read_packages(place: Place, python: str) -> dict[str, Any] | None:
    """What is installed for an interpreter: python, versions, requires, shared (libraries that two packages claim).

    None if it does not say.
    """
    return _read_object(place.run((python, "-c", _PROBE)))


def read_facts(place: Place, framework: str, python: str) -> dict[str, Any] | None:
    """What `python -m torch_tp.doctor` (or jax_tp) says, or None if it does not run: then no worker does."""
    return _read_object(place.run((python, "-m", f"{framework}_tp.doctor")))


def _read_object(told: str | None) -> dict[str, Any] | None:
    """The last line that is a JSON object, since libraries may print more before and after it; None without any."""
    for line in reversed((told or "").splitlines()):
        with suppress(ValueError):
            if isinstance(found := json.loads(line), dict):
                return found
    return None


def package_findings(requirements: list[Requirement], packages: Packages) -> Iterator[Finding]:
    """Of each interpreter what is missing or too old, and what differs from the versions tested."""
    claimed = {name for names in OWN.values() for name in names}
    for side, installed in packages.items():
        if installed is None:
            what = f"{side}: unknown, the interpreter failed or took over {COMMAND_LIMIT_S:.0f} s to list them"
            do = "`python -m pip list` in that environment shows the error; if the file system was cold, try again"
            yield Finding("problem", "packages", what, do)
            continue
        versions, untested, unfit = installed["versions"], [], []
        for one in requirements:
            name = canonicalize_name(one.name)
            if name not in (*CONTRACT, *OWN.get(side, ())) and (side in OWN or name in claimed):
                continue
            version = versions.get(name)
            if version is not None and one.specifier.contains(version, prereleases=True):
                continue
            if "tested" not in str(one.marker):
                unfit.append((one, "not installed" if version is None else version))
            elif version is not None:
                untested.append(f"{name} {version} ({one.specifier})")
        for one, version in unfit:
            what = f"{side}: {one.name} is {version}, the project takes {one.specifier}"
            yield Finding("problem", "packages", what, f"pip install '{one.name}{one.specifier}'", PYPROJECT)
        if not unfit:
            shown = ", ".join(f"{name} {versions[name]}" for name in OWN.get(side, CONTRACT) if name in versions)
            what = f"{side}: Python {installed['python']}, {shown}; " + (
                f"other versions than tested: {', '.join(untested)}" if untested else "all as tested"
            )
            yield check(
                bool(untested), "note", "packages", what, "pip install '.[tested]' takes what CI runs", PYPROJECT
            )


def extra_findings(packages: Packages) -> Iterator[Finding]:
    """Which extras are there, and what is lost without."""
    for extra, side, names, lost in EXTRAS:
        installed = packages.get(side, packages["parity"])
        if installed is None:
            continue
        missing = [name for name in names if name not in installed["versions"]]
        what = f"extra {extra}: {', '.join(missing)} missing, {lost}" if missing else f"extra {extra} is installed"
        yield check(bool(missing), "note", "packages", what, f"pip install '.[{extra}]'", PYPROJECT)


def wheel_findings(packages: Packages) -> Iterator[Finding]:
    """CUDA libraries that a framework needs in another version than is there, or that two packages overwrite."""
    clashes: dict[str, None] = {}  # a set in order: the same interpreter may serve all sides
    for installed in filter(None, packages.values()):
        versions = installed["versions"]
        for owner, one in ((owner, Requirement(line)) for owner, own in installed["requires"].items() for line in own):
            version = versions.get(canonicalize_name(one.name))
            extras = re.findall(r'extra == "([^"]+)"', str(one.marker))
            applies = one.marker is None or any(one.marker.evaluate({"extra": name}) for name in ("", *extras))
            is_cuda = re.match("nvidia-|jax-cuda", one.name) is not None
            if is_cuda and applies and version and not one.specifier.contains(version, prereleases=True):
                clashes[f"{owner} {versions[owner]} needs {one.name}{one.specifier}, installed is {version}"] = None
        clashes |= {f"{a} and {b} overwrite each other's {file}": None for a, b, file in installed["shared"]}
    for what in clashes:
        yield Finding("problem", "CUDA wheels", what, APART, "https://github.com/jax-ml/jax/issues/18032")


def worker_findings(place: Place, facts: Mapping[str, dict[str, Any] | None]) -> Iterator[Finding]:
    """Whether the workers start; the precision of float32 products that each framework takes, and that they set."""
    for name, told in facts.items():
        if told is None:
            do = f"`python -m {name}_tp.doctor` in that environment shows the error"
            yield Finding("problem", "workers", f"{name}: the worker does not start, or does not say what it sets", do)
            continue
        by_default, in_workers = told["precision_by_default"], told["precision_in_workers"]
        shown = f"{by_default} (TF32 on A100s)" if by_default in (None, "high") else by_default
        what = f"{name}: float32 products are {shown} by default, {in_workers} in workers"
        do = "set_precision of worker.py must set 'highest', or TF32 is compared with IEEE float32"
        yield check(in_workers != "highest", "problem", "precision", what, do, PRECISION)
    if named := [name for name in PRECISION_VARIABLES if name in place.env]:
        what = f"{', '.join(named)} set: programs of your own obey, the workers do not"
        yield Finding("note", "precision", what, f"unset {' '.join(named)}", PRECISION)
