"""Imports run one way: neither package knows the other, and the harness knows neither framework."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {
    "torch_tp": ("jax", "jaxlib", "jax_tp", "flax", "optax"),
    "jax_tp": ("torch", "torch_tp"),
    "parity": ("torch", "jax", "jaxlib", "flax", "optax", "torch_tp", "jax_tp"),
}


def all_but(*known: str) -> tuple[str, ...]:
    """The modules of the harness that are not these."""
    stems = (path.stem for path in (ROOT / "parity").iterdir())
    return tuple(f"parity.{stem}" for stem in stems if stem not in (*known, "__init__", "__pycache__"))


# What a room of the harness must not reach for: reports never run anything, the cost model knows no trace.
ROOMS = {
    "parity/record.py": ("parity",),
    # Workers import them: of the harness they may know the contract only, or they would bring it into the workers.
    "parity/contract.py": all_but("record"),
    "parity/step_contract.py": all_but("record"),
    "parity/question_contract.py": all_but("record", "contract", "step_contract"),
    "parity/files_contract.py": all_but("contract"),
    "parity/worker_contract.py": all_but("record", "contract", "files_contract", "question_contract"),
    "parity/checkpoint_format.py": all_but("contract", "files_contract"),
    "parity/checkpoint_seal.py": all_but("contract", "checkpoint_format"),
    "parity/report": ("parity.launch", "parity.run", "parity.cli", "parity.compare"),
    "parity/cost": (
        *("parity.hlo", "parity.compare", "parity.launch", "parity.run", "parity.rundir", "parity.cli"),
        *("parity.steps", "parity.predict"),
    ),
    "parity/predict": ("parity.launch", "parity.run", "parity.report", "parity.cli"),
    "parity/check.py": ("parity.compare", "parity.launch", "parity.run", "parity.report", "parity.cli"),
    "parity/compare.py": ("parity.launch", "parity.run", "parity.report", "parity.cli"),
    "parity/launch.py": ("parity.compare", "parity.check", "parity.report", "parity.cli"),
}


def imports(source: str) -> set[str]:
    """Every module that the source imports, at any depth of nesting."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def reaches(source: str, modules: tuple[str, ...]) -> set[str]:
    return {name for name in imports(source) for module in modules if f"{name}.".startswith(f"{module}.")}


def files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_does_not_import_what_it_must_not_know(package):
    found = {str(path): reaches(path.read_text(), FORBIDDEN[package]) for path in files(ROOT / package)}
    assert {path: names for path, names in found.items() if names} == {}


# Who imports what of the harness: a checkpoint's files are the same from both, so their format is written once. What
# XLA's partitioner sends stands in the text of the compiled program only.
KNOWN = {
    "worker.py": ("parity.record", "parity.contract", "parity.files_contract", "parity.worker_contract"),
    "steps.py": ("parity.step_contract",),
    "tasks.py": ("parity.contract",),
    "checkpoint.py": ("parity.contract", "parity.checkpoint_format", "parity.checkpoint_seal"),
    "questions.py": ("parity.record", "parity.contract", "parity.question_contract", "parity.step_contract"),
    "partitioners.py": ("parity.question_contract",),
    "chain.py": ("parity.question_contract",),
    "bench.py": ("parity.question_contract",),
    "native_checkpoint.py": ("parity.checkpoint_format", "parity.checkpoint_seal"),
    "e03_grid.py": ("parity.hlo",),
}


@pytest.mark.parametrize("package", ["torch_tp", "jax_tp"])
def test_of_the_harness_only_what_is_known_is_imported(package):
    for path in files(ROOT / package):
        source = path.read_text()
        assert reaches(source, ("parity",)) == reaches(source, KNOWN.get(path.name, ())), path


@pytest.mark.parametrize("room", ROOMS)
def test_room_of_the_harness_does_not_reach_back(room):
    for path in files(ROOT / room):
        assert reaches(path.read_text(), ROOMS[room]) == set(), path


def test_reader_of_imports_sees_nested_and_from_imports():
    source = "def f():\n    import jax.numpy as jnp\nfrom torch import nn\nimport jaxtyping"
    assert reaches(source, ("jax", "torch")) == {"jax.numpy", "torch", "torch.nn"}
