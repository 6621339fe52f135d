"""The commands that put questions to both frameworks, from the shell to the table."""

import json
import subprocess
import sys

PARITY = (sys.executable, "-m", "parity.cli")


def parity(*arguments):
    return subprocess.run([*PARITY, *arguments], capture_output=True, text=True, timeout=240)


def test_both_partitioners_answer():
    done = parity("partitioners", "sum_all", "softmax", "--json", "--dims", "M=64,K=32", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["summary"]["all"]["rows"] == 18
    rows = {(row["program"], *map(tuple, row["layouts"])): row for row in content["rows"]}
    # A scalar over two devices of an axis: 4 bytes, 2 (n-1)/n of which come; over four of both 6.
    for name in ("torch", "jax"):
        assert rows["sum_all", ("S0", "R")][name]["received_bytes"] == 4
        assert rows["sum_all", ("S0", "S1")][name]["received_bytes"] == 6
        assert rows["sum_all", ("R", "R")][name]["collectives"] == []
    # Softmax over a sharded dim: DTensor gathers the shard of 64 x 16 that it lacks, XLA all-reduces maxima and sums.
    row = rows["softmax", ("S1", "R")]
    assert (row["torch"]["received_bytes"], row["jax"]["received_bytes"]) == (64 * 16 * 4, 2 * 64 * 4)
    assert row["fewer"] == "jax"


def test_the_grid_is_timed_in_both():
    done = parity("bench", "grid", "--forward", "--dims", "M=16,K=16,N=16", "--panel", "4", "--pairs", "2", "--json")
    assert done.returncode == 0, done.stderr
    for ratios in json.loads(done.stdout).values():
        assert [one["plan"] for one in ratios] == ["summa", "stationary", "cannon"]
        assert all(len(one["ratios"]) == 2 and min(one["ratios"]) > 0 for one in ratios)
