"""The reader of XLA's HLO text, against hand-computed collectives of real programs.

The samples in hlo_samples/ are XLA's own output for the programs of hlo_samples/make.py, on a mesh of dp=2, tp=4
(A100s in two hosts) unless said otherwise. Sizes below are written as the products that they come from.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

from parity.contract import Collective
from parity.hlo import read_collectives

SAMPLES = Path(__file__).parent / "hlo_samples"
TWO_HOSTS = {"dp": 2, "tp": 4}
MESHES = {"one_host": {"tp": 4}, "three_axes": {"a": 2, "b": 2, "c": 2}}

BF16, F32 = 2, 4  # bytes of an element


def sample(name):
    return (SAMPLES / f"{name}.txt").read_text(encoding="utf-8")


def read(name, text=None):
    return read_collectives(sample(name) if text is None else text, MESHES.get(name, TWO_HOSTS))


def entries(ledger):
    return Counter((c.kind, c.axis, c.dtype, c.payload_bytes, c.count, c.pass_) for c in ledger.collectives)


def replaced(text, old, new, count=1):
    """`text` with `count` occurrences changed, -1 for all; fails when there is nothing to change."""
    assert old in text, f"the sample has no {old!r}"
    return text.replace(old, new, count)


def forward(*rows):
    return [(*row, 1, "forward") for row in rows]


KINDS = forward(  # x is [16, 64] on each device
    ("all_reduce", "tp", "bfloat16", 16 * 64 * BF16),
    ("all_reduce", "dp", "bfloat16", 8 * 64 * BF16),
    ("all_reduce", "dp+tp", "bfloat16", 4 * 64 * BF16),
    ("all_gather", "tp", "bfloat16", 4 * 16 * 64 * BF16),
    ("reduce_scatter", "dp", "bfloat16", 16 * 64 * BF16),
    ("all_to_all", "tp", "bfloat16", 16 * 64 * BF16),
    ("permute", "tp", "bfloat16", 16 * 64 * BF16),
    ("permute", "dp", "bfloat16", 8 * 64 * BF16),
)

X = 8 * 32 * 64  # elements of the activations of one dp rank: batch 16 / dp, sequence 32, width 64
W = 64 * 256 // 4  # elements of one weight shard

EXPECTED = {
    "kinds": KINDS,
    "broadcast": forward(("broadcast", "tp", "bfloat16", 16 // 4 * 64 * BF16)),
    # Operands of a device: bfloat16 [8, 64] and [16, 64], float32 [4, 24]; the all-gather doubles them over dp.
    "combined": forward(
        ("all_gather", "dp", "bfloat16", 2 * (8 * 64 + 16 * 64) * BF16),
        ("all_gather", "dp", "float32", 2 * 4 * 24 * F32),
        ("permute", "dp", "bfloat16", (8 * 64 + 16 * 64) * BF16),
        ("permute", "dp", "float32", 4 * 24 * F32),
        ("reduce_scatter", "dp", "bfloat16", (8 * 64 + 16 * 64) * BF16),
        ("reduce_scatter", "dp", "float32", 4 * 24 * F32),
    ),
    "auto_step": [
        ("all_reduce", "tp", "bfloat16", X * BF16, 1, "forward"),
        ("all_reduce", "dp", "float32", F32, 1, "forward"),  # the mean of the loss
        ("all_reduce", "tp", "bfloat16", X * BF16, 1, "backward"),
        ("all_reduce", "dp", "bfloat16", 2 * W * BF16, 1, "backward"),  # both weight gradients, concatenated
        ("all_reduce", "tp", "float32", F32, 1, "optimizer"),  # the squared norm
    ],
    "one_host": [  # no dp: one device group holds the whole batch
        ("all_reduce", "tp", "bfloat16", 2 * X * BF16, 1, "forward"),
        ("all_reduce", "tp", "bfloat16", 2 * X * BF16, 1, "backward"),
        ("all_reduce", "tp", "float32", F32, 1, "optimizer"),
    ],
    "nnx_step": [  # no gradient of the input is asked for: no all-reduce over tp in the backward pass
        ("all_reduce", "tp", "bfloat16", X * BF16, 1, "forward"),
        ("all_reduce", "dp", "float32", F32, 1, "forward"),
        ("all_reduce", "dp", "bfloat16", 2 * W * BF16, 1, "backward"),
    ],
    "custom_vjp": [
        ("all_reduce", "tp", "bfloat16", X * BF16, 1, "forward"),
        ("all_reduce", "tp", "bfloat16", X * BF16, 1, "backward"),
    ],
    "scan_checkpoint": [
        ("all_gather", "tp", "bfloat16", X * BF16, 6, "forward"),
        ("reduce_scatter", "tp", "bfloat16", X * BF16, 6, "forward"),
        ("all_gather", "tp", "bfloat16", X * BF16, 6, "backward"),  # computed again
        ("reduce_scatter", "tp", "bfloat16", X * BF16, 6, "backward"),  # computed again
        ("all_gather", "tp", "bfloat16", X * BF16, 6, "backward"),  # the transpose of the reduce-scatter
        ("reduce_scatter", "tp", "bfloat16", X * BF16, 6, "backward"),  # the transpose of the all-gather
        ("all_reduce", "dp+tp", "float32", F32, 1, "forward"),
        ("all_reduce", "dp+tp", "float32", F32, 1, "backward"),
        ("all_reduce", "dp", "bfloat16", 6 * 2 * W * BF16, 1, "backward"),  # after the loop, for all layers
    ],
    "nested_scan": [("all_reduce", "tp", "bfloat16", 16 * 32 * BF16, 3 * 5, "forward")],
    "gather_scan_double": 2 * [("all_gather", "dp", "bfloat16", 64 * 64 * BF16, 6 // 2, "forward")],
    "gather_scan_pipelined": [  # the first before the loop
        ("all_gather", "dp", "bfloat16", 64 * 64 * BF16, 1, "forward"),
        ("all_gather", "dp", "bfloat16", 64 * 64 * BF16, 5, "forward"),
    ],
    "control_flow": forward(
        ("all_reduce", "dp", "float32", F32),  # in the condition of the loop
        ("all_reduce", "tp", "float32", 16 * 32 * F32),  # in its body
        ("all_reduce", "tp", "float32", 16 * 32 * F32),  # one branch of the conditional
        ("all_gather", "tp", "float32", 16 * 32 * F32),  # the other
        ("all_reduce", "dp", "float32", 16 * 32 * F32),  # each of the three branches of the switch
    ),
    "three_axes": forward(
        ("all_to_all", "c", "bfloat16", 16 * 64 * 8 // 8 * BF16),
        ("all_to_all", "a+b", "bfloat16", 16 * 64 * 8 // 8 * BF16),
        ("permute", "b+c", "bfloat16", 16 * 64 * 8 // 8 * BF16),
        ("all_reduce", "a+c", "float32", F32),
    ),
    "fsdp": [
        ("all_gather", "dp", "bfloat16", 3 * 64 * 64 * BF16, 1, "forward"),
        ("all_gather", "dp", "float32", 64 * 64 * F32, 1, "forward"),
        ("reduce_scatter", "dp", "bfloat16", 3 * 64 * 64 * BF16, 1, "backward"),
        ("all_reduce", "dp", "bfloat16", 64 * 64 * BF16, 1, "backward"),
        ("all_reduce", "dp", "float32", F32, 1, "forward"),
    ],
    "regroup": forward(
        ("permute", "dp+tp", "bfloat16", 16 // 4 * 64 * BF16), ("all_gather", "?", "bfloat16", 16 // 2 * 64 * BF16)
    ),
    "ragged": [],
    # XLA for the CPU computes bfloat16 in float32, and its collectives too: twice the bytes.
    "cpu_kinds": [(kind, axis, "float32", 2 * size, *rest) for kind, axis, _, size, *rest in KINDS],
    "cpu_auto_step": [
        ("all_reduce", "tp", "float32", X * F32, 1, "forward"),
        ("all_reduce", "dp", "float32", F32, 1, "forward"),  # combined with the next, told apart by the joined name
        ("all_reduce", "dp", "float32", 2 * W * F32, 1, "backward"),
        ("all_reduce", "tp", "float32", 2 * F32, 1, "optimizer"),  # combined with the next
        ("all_reduce", "tp", "float32", X * F32, 1, "backward"),
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_collectives_of_sample_match_program(name):
    assert entries(read(name)) == Counter(EXPECTED[name])


def test_every_sample_has_an_expectation():
    assert {path.stem for path in SAMPLES.glob("*.txt")} == set(EXPECTED)


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("kinds", []),
        ("cpu_auto_step", []),
        ("auto_step", ["no op_name; taken as backward by the names of what feeds it"]),
        ("three_axes", ["no op_name; taken as forward by the names of what feeds it"]),
        ("regroup", ["replica groups [4,2]<=[2,2,2]T(0,2,1) are those of no set of mesh axes"]),
    ],
)
def test_notes_of_sample_say_what_the_text_leaves_open(name, notes):
    found = read(name).notes
    assert len(found) == len(notes)
    assert all(wanted in note for wanted, note in zip(notes, found, strict=True))


@pytest.mark.parametrize(
    ("name", "gaps"),
    [
        ("ragged", ["ragged-all-to-all-start is not counted"]),
        ("control_flow", ["a loop of unknown length", "the branches issue different collectives"]),
        ("combined", []),
    ],
)
def test_gaps_of_sample_say_what_could_not_be_counted(name, gaps):
    found = read(name).gaps
    assert len(found) == len(gaps)
    assert all(wanted in gap for wanted, gap in zip(gaps, found, strict=True))


def test_loops_and_overlap_are_told():
    pipelined = {call.count: call for call in read("gather_scan_pipelined").calls}
    assert not pipelined[1].is_async  # only copies are scheduled before its end
    assert pipelined[1].loop_count == 1
    assert not pipelined[5].is_async
    assert pipelined[5].loop_count == 5
    assert [call.loop_count for call in read("control_flow").calls] == [None, None, 1, 1, 1]
    assert not any(call.is_async for call in read("cpu_kinds").calls)


def test_source_lines_and_names_lead_to_the_program():
    program = (SAMPLES / "make.py").read_text(encoding="utf-8").splitlines()
    wanted = {"all_gather": "lax.all_gather(", "all_to_all": "lax.all_to_all(", "reduce_scatter": "lax.psum_scatter("}
    calls = [call for call in read("kinds").calls if call.kind in wanted]
    assert len(calls) == 3
    for call in calls:
        file, _, line = call.source_line.partition(":")
        assert file == "make.py"
        assert wanted[call.kind] in program[int(line) - 1]
        assert call.op_name == call.to_collective().source == f"jit(function)/shard_map/{call.kind}"


def test_combined_collectives_are_marked():
    assert {call.num_operands for call in read("fsdp").calls} == {1, 3, 4}
    assert {call.num_operands for call in read("kinds").calls} == {1}
    assert {call.num_operands for call in read("cpu_kinds").calls} == {1}  # the all-to-all has four operands there


# Negative controls: each change of the text is a change of the program, and must be a change of the ledger.
MUTATIONS = [
    ("kinds", "bf16[64,64]{1,0}) all-gather-start", "f32[64,64]{1,0}) all-gather-start", "all_gather float32 16384"),
    ("kinds", "bf16[64,64]{1,0}) all-gather-start", "bf16[32,64]{1,0}) all-gather-start", "all_gather bfloat16 4096"),
    ("kinds", "{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}", "{0,4},{4,0}", "permute dp"),
    ("kinds", "replica_groups={{0,1,2,3},{4,5,6,7}}", "replica_groups={{0,1,2,4},{3,5,6,7}}", "?"),
    ("kinds", "replica_groups={{0,1,2,3},{4,5,6,7}}", "replica_groups={}", "dp+tp"),
    ("nested_scan", '"known_trip_count":{"n":"5"}', '"known_trip_count":{"n":"7"}', "21"),
    ("nested_scan", '"known_trip_count":{"n":"3"}', '"known_trip_count":{"n":"4"}', "20"),
    ("auto_step", "jit(step)/optimizer/reduce_sum", "jit(step)/optimizers/reduce_sum", "no optimizer"),
    ("custom_vjp", "transpose(jvp())/psum", "jvp()/psum", "no backward"),
    ("cpu_auto_step", "(jvp()/reduce_sum:transpose(jvp())", "(transpose(jvp())/reduce_sum:transpose(jvp())", "merged"),
]


@pytest.mark.parametrize(("name", "old", "new"), [row[:3] for row in MUTATIONS], ids=[row[3] for row in MUTATIONS])
def test_mutated_sample_changes_the_ledger(name, old, new):
    mutated = replaced(sample(name), old, new, count=-1)
    assert entries(read(name, mutated)) != entries(read(name))


def test_lost_collective_is_missed():
    """A start without its end still counts, an end alone does not: the pair counts once."""
    text = sample("kinds")
    start = next(line for line in text.splitlines() if " all-gather-start(" in line)
    done = next(line for line in text.splitlines() if " all-gather-done(" in line)
    assert entries(read("kinds", replaced(text, done + "\n", ""))) == Counter(KINDS)
    left = Counter(KINDS) - entries(read("kinds", replaced(text, start + "\n", "")))
    assert left == Counter({("all_gather", "tp", "bfloat16", 4 * 16 * 64 * BF16, 1, "forward"): 1})


def test_pass_without_any_name_is_said_to_be_a_guess():
    text = re.sub(r', metadata=\{[^}]*\}|op_name="[^"]*"', "", sample("custom_vjp"))
    ledger = read("custom_vjp", text)
    assert {entry.pass_ for entry in ledger.collectives} == {"forward"}
    assert len(ledger.notes) == 2
    assert all("by no name at all" in note for note in ledger.notes)
    assert {entry.source for entry in ledger.collectives} == {"(the compiler gives no name)"}


def test_groups_of_one_device_move_nothing():
    text = re.sub(r"replica_groups=\{\{.*?\}\}", "replica_groups=[8,1]<=[8]", sample("kinds"))
    text = re.sub(r"source_target_pairs=\{\{.*?\}\}", "source_target_pairs={{0,0},{1,1}}", text)
    assert read("kinds", text).collectives == ()


def test_equal_entries_survive_the_contract():
    for entry in read("scan_checkpoint").collectives:
        assert Collective.from_json(entry.to_json()) == entry
