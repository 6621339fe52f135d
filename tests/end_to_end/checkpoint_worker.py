"""`checkpoint_worker.py torch|jax DIR`: what test_checkpoint.py asks of real groups of 4 devices.

Both sides run at once; each waits for the checkpoints of the other, which appear complete or not at all.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from parity.cases import FAMILIES
from parity.cases.family import Selection, cases_of
from parity.checkpoint_format import CheckpointError
from parity.checkpoint_seal import seal
from parity.inputs import make_inputs

WAIT_S = 120.0
NUMERICS = ("float64", "float32", "bfloat16")
# (layer, plan): tied, replicated and sharded parameters, and a sequence-parallel plan.
MODELS = (("models.gpt", "megatron"), ("block", "sequence_parallel"))


def question(layer: str, plan: str, dtype: str, mesh: tuple[tuple[str, int], ...] = (("tp", 4),)):
    """The case, parameters and batch."""
    (family,) = (family for family in FAMILIES if (family.layer, family.plan) == (layer, plan))
    case = next(cases_of(family, Selection(meshes=(dict(mesh),), numerics=(dtype,))))
    params, batch = family.shapes(case)
    made = make_inputs(
        layer, case.options, params, batch, family.ranges(case), dtype, "normal", 0, family.ignored, num_batches=4
    )
    return case, *made


def wait_for(directory: Path) -> None:
    """Until the other framework has written it."""
    end = time.monotonic() + WAIT_S
    while not directory.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{directory} did not appear")
        time.sleep(0.05)


def said(function, *arguments, or_not: bool = False) -> str:
    """The line of the CheckpointError that a call ends in; "" if it does not and need not."""
    try:
        function(*arguments)
    except CheckpointError as error:
        return str(error)
    assert or_not, f"{function} took {arguments}"
    return ""


def names_of_others(side, case, params, directory: Path) -> None:
    """Names that are not the module's end in one line, before anything is written."""
    _, module = side.build(case, params, 2)
    line = said(side.checkpoint.save, directory, [*params, "mlp.other.w"], module)
    assert line.startswith("mlp.other.w: the module has no parameter mlp.other."), line
    line = said(side.checkpoint.save, directory, list(params)[1:], module)
    assert line.endswith("the module has it, and it is not among the names of parameters to save or load"), line
    assert not directory.exists()


def refused_by_all(side, case, params, whole: Path, copy: Path) -> None:
    """What only one rank finds, all ranks say: a directory that is there, a shard that only the last one reads."""
    _, module = side.build(case, params, 4)
    assert said(side.checkpoint.save, whole, list(params), module).endswith("give another directory")
    if side.is_first():
        shutil.copytree(whole, copy)
        flip(last_shard(copy))
    side.barrier()
    line = said(side.checkpoint.load, copy, list(params), module)
    assert last_shard(copy).name in line, line


def last_shard(directory: Path) -> Path:
    return sorted(directory.glob("shard-*.safetensors"))[-1]


def in_own_format(side, root: Path, framework: str, other: str) -> None:
    """Module and optimizer through DCP or Orbax at every tp degree, on to the other framework, and back into its own.

    What was loaded is saved in the neutral format, where the test compares it.
    """
    case, params, batch = question("block", "sequence_parallel", "float64")
    names, native, neutral = list(params), side.NATIVE, side.checkpoint
    mesh, module = side.build(case, params, 4)
    training = side.new_training(module, mesh)
    side.do_steps(case, mesh, module, training, batch, case.plan)
    native.save(root / f"{framework}.native", module, *training)
    neutral.save(root / f"{framework}.native.want", names, module, *training)
    for tp in side.DEGREES:
        module, training = load_blank(side, native.load, root / f"{framework}.native", case, params, tp)
        neutral.save(root / f"{framework}.native.tp{tp}", names, module, *training)

    wait_for(root / f"{other}.native.tp1")
    load = partial(load_named, neutral, names)
    module, training = load_blank(side, load, root / f"{other}.native.tp1", case, params, 2)
    native.save(root / f"{framework}.converted", module, *training)
    module, training = load_blank(side, native.load, root / f"{framework}.converted", case, params, 4)
    neutral.save(root / f"{framework}.converted.got", names, module, *training)
    refused_contents(side, root / f"{framework}.native")
    damages(side, case, params, root / f"{framework}.native", root / f"{framework}.damaged")


def load_blank(side, load, source: Path, case, params, tp: int, beside: str | None = None):
    """Module and optimizer that are new and blank, filled from a checkpoint."""
    mesh, module = side.build(case, side.blank(params), tp, beside)
    training = side.new_training(module, mesh)
    load(source, module, *training)
    return module, training


def refused_contents(side, directory: Path) -> None:
    """Another dtype would be converted, a parameter too few or too many be passed over: each is one line."""
    single, params, _ = question("block", "sequence_parallel", "float32")
    _, module = side.build(single, params, 2)
    line = said(side.NATIVE.load, directory, module)
    assert "float64" in line, line
    assert "expected float32" in line, line
    case, params, _ = question("block", "sequence_parallel", "float64")
    _, module = side.build(case, params, 2)
    assert said(side.NATIVE.load, directory, module).endswith("the model has no such tensor")  # its moments
    case, params, _ = question("mlp", "megatron", "float64")
    _, module = side.build(case, params, 2)
    assert "there is no tensor" in said(side.NATIVE.load, directory, module)
    assert said(side.NATIVE.save, directory, module).endswith("give another directory")
    assert said(side.NATIVE.load, directory.with_name("nowhere"), module).endswith("nowhere is not there")


def damages(side, case, params, whole: Path, copy: Path) -> None:
    """Every file deleted, cut, zeroed in part, with one bit changed: one line, which names it. Also where the checksums
    were made after the damage: then the framework finds it, or reads the same bits without the file."""
    mesh, module = side.build(case, side.blank(params), 2)
    training = side.new_training(module, mesh)
    side.NATIVE.load(whole, module, *training)
    want, found = side.bits(module), 0
    for name in sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file()):
        for kind in DAMAGES:
            side.barrier()
            if side.is_first():
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(whole, copy)
                DAMAGES[kind](copy / name)
            side.barrier()
            line = said(side.NATIVE.load, copy, module, *training)
            assert str(copy) in line, (name, kind, line)
            assert len(line.splitlines()) == 1, (name, kind, line)
            assert str(name) in line or name.name.startswith("checksums-"), (name, kind, line)
            found += 1
        if name.name.startswith("checksums-"):
            continue
        side.barrier()
        if side.is_first():
            shutil.copytree(whole, copy, dirs_exist_ok=True)
            (copy / name).unlink()
            for note in copy.glob("checksums-*.json"):
                note.unlink()
            seal(copy, 0, 1)
        side.barrier()
        line = said(side.NATIVE.load, copy, module, *training, or_not=True)
        assert len(line.splitlines()) == (str(copy) in line), line
        assert side.bits(module) == want, name
    if side.is_first():
        (copy.parent / f"{copy.name}.found").write_text(str(found))


def overwrite(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


def flip(path: Path) -> None:
    middle = path.stat().st_size // 2
    overwrite(path, middle, bytes([path.read_bytes()[middle] ^ 1]) if path.stat().st_size else b"1")


DAMAGES = {
    "deleted": Path.unlink,
    "cut by a byte": lambda path: os.truncate(path, path.stat().st_size - 1) if path.stat().st_size else flip(path),
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2) if path.stat().st_size else flip(path),
    "zeros inside": lambda path: overwrite(path, path.stat().st_size // 3, bytes(path.stat().st_size // 3 + 1)),
    "one bit": flip,
}


def beside_data_parallelism(side, root: Path, framework: str, other: str) -> None:
    """A block on fsdp x tp: saved in both formats, loaded on dp x tp, and in the other framework without either."""
    case, params, batch = question("hybrid.block", "fsdp", "float64", (("fsdp", 2), ("tp", 2)))
    names, neutral = list(params), side.checkpoint
    mesh, module = side.build(case, params, 2, "fsdp")
    training = side.new_training(module, mesh)
    side.do_steps(case, mesh, module, training, batch, "fsdp")
    neutral.save(root / f"{framework}.hybrid.want", names, module, *training)
    side.NATIVE.save(root / f"{framework}.hybrid", module, *training)
    module, training = load_blank(side, side.NATIVE.load, root / f"{framework}.hybrid", case, params, 2, "dp")
    neutral.save(root / f"{framework}.hybrid.dp", names, module, *training)

    wait_for(root / f"{other}.hybrid.want")
    plain = replace(case, layer="block", plan="megatron")
    inner = {name.removeprefix("inner."): value for name, value in params.items()}
    for target, of, arrays, tp, axis in (("plain", plain, inner, 4, None), ("fsdp", case, params, 2, "fsdp")):
        load = partial(load_named, neutral, list(arrays))
        module, training = load_blank(side, load, root / f"{other}.hybrid.want", of, arrays, tp, axis)
        neutral.save(root / f"{framework}.hybrid.{target}", list(arrays), module, *training)


def load_named(neutral, names, source: Path, *state) -> None:
    neutral.load(source, names, *state)


def main() -> int:
    framework, root = sys.argv[1], Path(sys.argv[2])
    if framework == "jax":
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    side = importlib.import_module(f"checkpoint_{framework}")
    side.join()
    other = "jax" if framework == "torch" else "torch"
    for layer, plan in MODELS:
        for dtype in NUMERICS:
            case, params, _ = question(layer, plan, dtype)
            name = f"{layer}.{dtype}"
            side.save(case, params, 4, root / f"{framework}.{name}")
            wait_for(root / f"{other}.{name}")
            for tp in side.DEGREES:
                side.load(case, params, tp, root / f"{other}.{name}")
    case, params, batch = question("block", "sequence_parallel", "float64")
    side.train(case, params, batch, root / f"{framework}.trained")
    wait_for(root / f"{other}.trained")
    side.reload_optimizer(case, params, root / f"{other}.trained", root / f"{framework}.again")
    names_of_others(side, case, params, root / f"{framework}.refused")
    block = root / f"{framework}.block.float64"
    refused_by_all(side, case, params, block, root / f"{framework}.flipped")
    in_own_format(side, root, framework, other)
    beside_data_parallelism(side, root, framework, other)
    side.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
