"""`parity predict` from the command line to the figures, with what both frameworks really do; no GPU is there."""

import json

import pytest
from typer.testing import CliRunner

from parity.cli import app

BATCH, SEQ = 4, 32
WORDS = (
    "--machine",
    "derecho",
    "--mesh",
    "fsdp=2,tp=2",
    "--model",
    "llama-tiny",
    "--batch",
    f"{BATCH}",
    "--seq",
    f"{SEQ}",
)


@pytest.fixture(scope="module")
def content():
    done = CliRunner().invoke(app, ["predict", *WORDS, "--style", "manual", "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_step_is_predicted_from_what_the_framework_does(content, framework):
    step = content["frameworks"][framework]
    # A block sends two activations [B / fsdp, S, D] forward, and the embedding one: 2 blocks, D = 64, 2 bytes each.
    (reduced,) = [row for row in step["ledger"] if (row["pass"], row["kind"], row["axis"], row["dtype"])
                  == ("forward", "all_reduce", "tp", "bfloat16")]  # fmt: skip
    assert reduced["payload_bytes"] == (2 * 2 + 1) * BATCH // 2 * SEQ * 64 * 2
    assert reduced["link"] == "nvlink"
    # 6 flops a parameter and token for the matmuls, but for the table that is only looked up.
    matmul_params = 2 * (64 * (8 + 2 * 4) * 8 + 8 * 8 * 64 + 3 * 64 * 192) + 64 * 256
    tokens = BATCH // 2 * SEQ
    scores = 2 * 2 * 3 * 2 * (BATCH // 2) * 4 * SEQ * SEQ * 8  # q k^T and its product with v, three times, of 4 heads
    assert step["flops"] == 6 * tokens * matmul_params // 2 + scores
    assert step["step"]["seconds"] == pytest.approx(sum(part["seconds"] for part in step["parts"]))
    assert step["step"]["low_s"] < step["step"]["seconds"] < step["step"]["high_s"]
    assert step["memory_bytes"]["fits"] is True
    passes = {"forward", "backward", "optimizer"}
    assert {part["pass"] for part in step["parts"] if part["name"] == "memory-bound"} == passes


def test_both_frameworks_compute_the_same_and_take_about_as_long(content):
    torch, jax = (content["frameworks"][name] for name in ("torch", "jax"))
    assert torch["flops"] == jax["flops"]
    assert 1 / 3 < torch["step"]["seconds"] / jax["step"]["seconds"] < 3
