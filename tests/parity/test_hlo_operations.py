"""What a compiled program computes and moves, against its shapes by hand.

`fsdp` is y = relu(x w1) w2 w3 ... of hlo_samples/make.py; the small texts below are as XLA writes them.
"""

from __future__ import annotations

import pytest
from test_hlo import sample

from parity.hlo.operations import read_operations, stacked_bytes, uncounted_work
from parity.hlo.text import parse_module
from parity.step_contract import StepRequest, StepTrace
from parity.steps import read_program

HEADER = "HloModule step, is_scheduled=true, num_partitions=1\n\n"

# 5 trips: of the stacked weights [5, 8, 16] and activations [5, 4, 16] each takes and puts one.
LOOP = (
    HEADER
    + """%take (p: bf16[5,8,16], i: s32[]) -> bf16[8,16] {
  %p = bf16[5,8,16]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = bf16[1,8,16]{2,1,0} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %w = bf16[8,16]{1,0} bitcast(%one)
}

%put (s: bf16[5,4,16], y: bf16[4,16], i: s32[]) -> bf16[5,4,16] {
  %s = bf16[5,4,16]{2,1,0} parameter(0)
  %y = bf16[4,16]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %new = bf16[1,4,16]{2,1,0} bitcast(%y)
  ROOT %all = bf16[5,4,16]{2,1,0} dynamic-update-slice(%s, %new, %i, %zero, %zero)
}

%body (t: (s32[], bf16[4,8], bf16[5,4,16], bf16[5,8,16])) -> (s32[], bf16[4,8], bf16[5,4,16], bf16[5,8,16]) {
  %t = (s32[], bf16[4,8]{1,0}, bf16[5,4,16]{2,1,0}, bf16[5,8,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%t), index=1
  %s = bf16[5,4,16]{2,1,0} get-tuple-element(%t), index=2
  %p = bf16[5,8,16]{2,1,0} get-tuple-element(%t), index=3
  %w = bf16[8,16]{1,0} fusion(%p, %i), kind=kLoop, calls=%take, metadata={op_name="jit(step)/jvp()/while/body/a"}
  %y = (bf16[4,16]{1,0}, s8[64]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm", metadata={op_name="jit(step)/jvp()/while/body/dot"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  %y0 = bf16[4,16]{1,0} get-tuple-element(%y), index=0
  %all = bf16[5,4,16]{2,1,0} fusion(%s, %y0, %i), kind=kLoop, calls=%put, metadata={op_name="jit(step)/jvp()/while/body/b"}
  ROOT %r = (s32[], bf16[4,8]{1,0}, bf16[5,4,16]{2,1,0}, bf16[5,8,16]{2,1,0}) tuple(%i, %x, %all, %p)
}

%more (t: (s32[], bf16[4,8], bf16[5,4,16], bf16[5,8,16])) -> pred[] {
  %t = (s32[], bf16[4,8]{1,0}, bf16[5,4,16]{2,1,0}, bf16[5,8,16]{2,1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (t: (s32[], bf16[4,8], bf16[5,4,16], bf16[5,8,16])) -> bf16[5,4,16] {
  %t = (s32[], bf16[4,8]{1,0}, bf16[5,4,16]{2,1,0}, bf16[5,8,16]{2,1,0}) parameter(0)
  %loop = (s32[], bf16[4,8]{1,0}, bf16[5,4,16]{2,1,0}, bf16[5,8,16]{2,1,0}) while(%t), condition=%more, body=%body, metadata={op_name="jit(step)/jvp()/while"}, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %kept = bf16[5,4,16]{2,1,0} get-tuple-element(%loop), index=2
}
"""  # noqa: E501
)


def rows(text):
    found = read_operations(parse_module(text))
    return {
        (op.pass_, op.kind, op.name, op.m, op.n, op.k, op.batch, op.flops, op.moved_bytes): op.count for op in found
    }


def test_loop_counts_its_trips_and_slices_move_what_they_take():
    i = 4  # the index
    assert rows(LOOP) == {
        ("forward", "memory", "fusion", 0, 0, 0, 0, 0, 2 * 8 * 16 * 2 + i): 5,
        ("forward", "matmul", "__cublas$gemm", 4, 16, 8, 1, 2 * 4 * 16 * 8, (4 * 8 + 8 * 16 + 4 * 16) * 2): 5,
        ("forward", "memory", "fusion", 0, 0, 0, 0, 0, 2 * 4 * 16 * 2 + i): 5,
    }


def test_loop_keeps_what_it_stacks_and_not_what_it_reads():
    assert stacked_bytes(parse_module(LOOP)) == 5 * 4 * 16 * 2
    of_backward = LOOP.replace('op_name="jit(step)/jvp()/while"', 'op_name="jit(step)/transpose(jvp())/while"')
    assert stacked_bytes(parse_module(of_backward)) == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"n":"5"', '"n":"6"'),
        ('"lhs_contracting_dimensions":["1"]', '"lhs_contracting_dimensions":["0"]'),
        ("jvp()/while/body/dot", "transpose(jvp())/while/body/dot"),
        ("ROOT %w = bf16[8,16]{1,0} bitcast(%one)", "ROOT %w = bf16[8,16]{1,0} bitcast(%p)"),
    ],
)
def test_mutated_text_changes_what_is_read(old, new):
    assert old in LOOP
    assert rows(LOOP.replace(old, new)) != rows(LOOP)


def test_product_in_batches_and_transposed_is_told_by_its_dims():
    text = HEADER + (
        "ENTRY %main (a: f32[2,64,8], b: f32[2,32,8]) -> f32[2,64,32] {\n"
        "  %a = f32[2,64,8]{2,1,0} parameter(0)\n"
        "  %b = f32[2,32,8]{2,1,0} parameter(1)\n"
        '  %y = (f32[2,64,32]{2,1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", '
        'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],'
        '"rhs_contracting_dimensions":["2"],"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}\n'
        "  ROOT %r = f32[2,64,32]{2,1,0} get-tuple-element(%y), index=0\n}\n"
    )
    moved = (2 * 64 * 8 + 2 * 32 * 8 + 2 * 64 * 32) * 4
    flops = 2 * 2 * 64 * 32 * 8
    assert rows(text) == {("forward", "matmul", "__cublas$lt$matmul", 64, 32, 8, 2, flops, moved): 1}
    # As fast as its operands are multiplied, whatever the result is stored in.
    narrow = text.replace("f32[2,64,8]", "bf16[2,64,8]").replace("f32[2,32,8]", "bf16[2,32,8]")
    assert [op.dtype for source in (text, narrow) for op in read_operations(parse_module(source))] == [
        "float32",
        "bfloat16",
    ]


def test_collectives_are_not_operations():
    names = {op.name for op in read_operations(parse_module(sample("fsdp")))}
    assert names.isdisjoint({"all-gather", "all-gather-start", "reduce-scatter", "all-reduce-start", "all-reduce-done"})
    assert names


def test_a_loop_of_unknown_length_is_told_and_not_among_the_notes_on_instructions():
    unknown = LOOP.replace('"known_trip_count":{"n":"5"}', "")
    assert uncounted_work(parse_module(LOOP)) == []
    (line,) = uncounted_work(parse_module(unknown))
    assert line == "%loop: a loop of unknown length, its work is counted once"
    request = StepRequest("r", "models.gpt", "megatron", "auto", {"tp": 1}, {}, {})
    (note,) = read_program(StepTrace("jax", "r", hlo=unknown), request).notes
    assert note.endswith(line)
    assert not note.startswith("%")  # those are only counted in the terminal


def test_both_branches_are_read_and_an_end_is_not_counted_again():
    branch = """%{name} (x: f32[4,8]) -> f32[4,8] {{
  %x = f32[4,8]{{1,0}} parameter(0)
  ROOT %y = f32[4,8]{{1,0}} copy(%x)
}}

"""
    entry = """ENTRY %main (c: pred[], x: f32[4,8]) -> f32[4,8] {
  %c = pred[] parameter(0)
  %x = f32[4,8]{1,0} parameter(1)
  %if = f32[4,8]{1,0} conditional(%c, %x, %x), true_computation=%yes, false_computation=%no
  %s = ((f32[4,8]{1,0}), f32[4,8]{1,0}) async-start(%if), calls=%run
  ROOT %d = f32[4,8]{1,0} async-done(%s), calls=%run
}
"""
    text = HEADER + "".join(branch.format(name=name) for name in ("yes", "no", "run")) + entry
    (copies,) = read_operations(parse_module(text))
    assert (copies.name, copies.count, copies.moved_bytes) == ("copy", 3, 2 * 4 * 8 * 4)
