"""The files of a checkpoint: any cut reads any other cut, and whatever is damaged is an error of one line."""

from __future__ import annotations

import json
import zlib

import ml_dtypes
import numpy as np
import pytest

from parity import checkpoint_format
from parity.checkpoint_format import Checkpoint, CheckpointError, begin, finish, unfinished, write_rank
from parity.contract import Shard
from parity.files_contract import load_arrays, save_arrays

W = np.random.default_rng(0).standard_normal((12, 8)).astype(ml_dtypes.bfloat16)
B = np.arange(8.0)
COUNT = np.array(3)


def cut(index):
    return W[tuple(slice(start, stop) for start, stop in index)]


def write(directory, indices):
    """One rank a shard of W; the first has the rest too."""
    begin(directory)
    for rank, index in enumerate(indices):
        rest = [("b", Shard((8,), ((0, 8),), "float64"), B), ("count", Shard((), (), "int64"), COUNT)]
        write_rank(
            directory, rank, [("w", Shard((12, 8), index, "bfloat16"), cut(index)), *(rest if rank == 0 else [])]
        )
    finish(directory)
    return directory


ROWS = [((0, 6), (0, 8)), ((6, 12), (0, 8))]
COLUMNS = [((0, 12), (0, 3)), ((0, 12), (3, 8))]
WHOLE = [((0, 12), (0, 8))]
GRID = [((a, a + 4), (b, b + 4)) for a in (0, 4, 8) for b in (0, 4)]


@pytest.fixture(params=[1, 32, 1 << 20], ids=lambda size: f"groups of {size} bytes")
def group_bytes(request, monkeypatch):
    monkeypatch.setattr(checkpoint_format, "GROUP_BYTES", request.param)


@pytest.mark.usefixtures("group_bytes")
@pytest.mark.parametrize("saved", [ROWS, COLUMNS, WHOLE, GRID], ids=["rows", "columns", "whole", "grid"])
def test_any_part_is_read_bit_for_bit(tmp_path, saved):
    checkpoint = Checkpoint(write(tmp_path / "c", saved))
    for index in [*ROWS, *COLUMNS, *WHOLE, *GRID, ((5, 7), (2, 5)), ((0, 0), (0, 8))]:
        got = checkpoint.read("w", (12, 8), "bfloat16", index)
        assert (got.dtype, got.shape, got.tobytes()) == (W.dtype, cut(index).shape, cut(index).tobytes())
    assert checkpoint.read("b", (8,), "float64", [(2, 5)]).tolist() == [2, 3, 4]
    assert checkpoint.read("count", (), "int64", ()) == 3
    checkpoint.verify()


def test_checkpoint_of_one_rank_is_a_plain_file_of_its_tensors(tmp_path):
    assert set(load_arrays(write(tmp_path / "c", WHOLE) / "shard-00000.safetensors")) == {"w", "b", "count"}


def test_only_the_rows_that_are_needed_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_format, "GROUP_BYTES", W.nbytes // 12)
    checkpoint = Checkpoint(write(tmp_path / "c", WHOLE))
    seen = []
    monkeypatch.setattr(
        checkpoint_format.zlib, "crc32", lambda data, crc=zlib.crc32: seen.append(len(data)) or crc(data)
    )
    checkpoint.read("w", (12, 8), "bfloat16", [(3, 6), (0, 8)])
    assert sum(seen) == W.nbytes // 4


def damage_index(change):
    def apply(directory):
        path = directory / "index.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def truncate(directory):
    path = directory / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def flip_last_byte(directory):
    path = directory / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def rewrite(**arrays):
    def apply(directory):
        save_arrays(directory / "shard-00001.safetensors", {"w[6:12,0:8]": cut(ROWS[1]), **arrays})

    return apply


def set_range(content):
    content["tensors"]["w"]["shards"][1]["index"] = [[5, 11], [0, 8]]


DAMAGES = {
    "truncated": (truncate, "shard-00001.safetensors: w cannot be read"),
    "one_bit": (flip_last_byte, "shard-00001.safetensors: w is corrupted"),
    "empty": (lambda d: (d / "shard-00001.safetensors").write_bytes(b""), "shard-00001.safetensors: w cannot be read"),
    "file_missing": (lambda d: (d / "shard-00001.safetensors").unlink(), "shard-00001.safetensors: w cannot be read"),
    "zeros": (rewrite(**{"w[6:12,0:8]": 0 * cut(ROWS[1])}), "shard-00001.safetensors: w is corrupted"),
    "other_shape": (rewrite(**{"w[6:12,0:8]": W}), "w has shape [12, 8], the index says [6, 8]"),
    "other_dtype": (
        rewrite(**{"w[6:12,0:8]": cut(ROWS[1]).astype("float32")}),
        "w is float32, the index says bfloat16",
    ),
    "index_missing": (lambda d: (d / "index.json").unlink(), "is no checkpoint: index.json No such file"),
    "index_torn": (lambda d: (d / "index.json").write_text('{"version'), "index.json: damaged"),
    "index_foreign": (lambda d: (d / "index.json").write_text("[1]"), "index.json: damaged"),
    "version": (damage_index(lambda content: content.update(version=99)), "version 99"),
    "tensor_missing": (damage_index(lambda content: content["tensors"].pop("w")), "there is no tensor w"),
    "hole": (
        damage_index(lambda content: content["tensors"]["w"]["shards"].pop()),
        "w: a hole: its shards hold 48 of 96",
    ),
    "overlap": (damage_index(set_range), "w: shard-00000.safetensors and shard-00001.safetensors overlap"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_an_error_of_one_line(tmp_path, damage):
    directory = write(tmp_path / "c", ROWS)
    assert Checkpoint(directory).read("w", (12, 8), "bfloat16", WHOLE[0]).tobytes() == W.tobytes()
    apply, says = DAMAGES[damage]
    apply(directory)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(directory).read("w", (12, 8), "bfloat16", WHOLE[0])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize(("shape", "dtype"), [((12, 9), "bfloat16"), ((12, 8), "float32")])
def test_tensor_of_another_shape_or_dtype_than_the_model_is_refused(tmp_path, shape, dtype):
    with pytest.raises(CheckpointError, match=r"w is bfloat16 \[12, 8\], expected"):
        Checkpoint(write(tmp_path / "c", ROWS)).read("w", shape, dtype, WHOLE[0])


def test_tensors_that_the_model_has_not_or_that_are_not_there_are_refused(tmp_path):
    checkpoint = Checkpoint(write(tmp_path / "c", ROWS))
    checkpoint.check_names(["w", "b", "count"])
    with pytest.raises(CheckpointError, match="there is no tensor v"):
        checkpoint.check_names(["w", "b", "count", "v"])
    with pytest.raises(CheckpointError, match="count: the model has no such tensor"):
        checkpoint.check_names(["w", "b"])


def test_a_rank_that_wrote_nothing_leaves_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="a hole"):
        write(tmp_path / "c", ROWS[:1])
    assert not (tmp_path / "c").exists()
    assert unfinished(tmp_path / "c").exists()
    write(tmp_path / "c", ROWS)  # what was left is swept away


def test_nothing_is_overwritten(tmp_path):
    write(tmp_path / "c", ROWS)
    with pytest.raises(CheckpointError, match="never overwritten"):
        begin(tmp_path / "c")


def test_partial_sum_is_no_value(tmp_path):
    begin(tmp_path / "c")
    with pytest.raises(CheckpointError, match="partial sum over tp"):
        write_rank(tmp_path / "c", 0, [("b", Shard((8,), ((0, 8),), "float64", ("tp",)), B)])
