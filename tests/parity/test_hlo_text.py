"""The reader of XLA's HLO text on small modules written by hand: what no program makes this compiler print."""

import re

import pytest

from parity.contract import ContractError
from parity.hlo import read_collectives
from parity.hlo.text import array_bytes

TWO_HOSTS = {"dp": 2, "tp": 4}
F32 = 4  # bytes of an element


def module(body, more="", partitions=8):
    """A module around the lines of an entry computation, in XLA's print."""
    return f"""HloModule m, is_scheduled=true, num_partitions={partitions}

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}}
{more}
ENTRY %main (p: f32[16,4]) -> f32[16,4] {{
  %p = f32[16,4]{{1,0}} parameter(0)
{body}
}}
"""


WRAPPED = """
%wrapped (x: f32[16,4]) -> f32[4,4] {
  %x = f32[16,4]{1,0} parameter(0)
  ROOT %rs = f32[4,4]{1,0} reduce-scatter(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
}
"""


NUMBERS = '"lhs_contracting_dimensions":["0"],"rhs_contracting_dimensions":["0"]'
NUMBERS += ',"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]'
PRODUCT = (
    '  %m = (f32[4,4]{1,0}, s8[64]{0}) custom-call(%p, %p), custom_call_target="__cublas$gemm", '
    f'backend_config={{"gemm_backend_config":{{"dot_dimension_numbers":{{{NUMBERS}}}}}}}\n'
)
COPY = "  %c = f32[16,4]{1,0} copy(%p)\n"


@pytest.mark.parametrize(
    ("between", "config", "is_async"),
    [
        ("", "", False),
        (COPY, "", False),
        (PRODUCT, "", True),
        (COPY + PRODUCT, "", True),
        (PRODUCT, ', backend_config={"collective_backend_config":{"is_sync":true}}', False),
        ("  %f = f32[4,4]{1,0} fusion(%p), kind=kCustom, calls=%multiplied\n", "", True),
    ],
)
def test_a_collective_is_hidden_by_products_only(between, config, is_async):
    start = f"  %s = f32[16,4]{{1,0}} all-reduce-start(%p), replica_groups=[2,4]<=[8], to_apply=%add{config}\n"
    body = f"{start}{between}  %d = f32[16,4]{{1,0}} all-reduce-done(%s)\n{PRODUCT.replace('%m', '%after')}"
    body += "  ROOT %r = f32[16,4]{1,0} copy(%d)"
    (call,) = read_collectives(module(body, MULTIPLIED), TWO_HOSTS).calls
    assert call.is_async is is_async


MULTIPLIED = """
%multiplied (x: f32[16,4]) -> f32[4,4] {
  %x = f32[16,4]{1,0} parameter(0)
  ROOT %dot = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={0}, rhs_contracting_dims={0}
}
"""


def test_async_wrapper_counts_once():
    """XLA's general form of an asynchronous operation, of which this compiler's own starts are shorthands."""
    body = """  %s = ((f32[16,4]{1,0}), f32[4,4]{1,0}, u32[]) async-start(%p), calls=%wrapped
"""
    body += (
        PRODUCT
        + """  %u = ((f32[16,4]{1,0}), f32[4,4]{1,0}, u32[]) async-update(%s), calls=%wrapped
  ROOT %d = f32[4,4]{1,0} async-done(%u), calls=%wrapped"""
    )
    (call,) = read_collectives(module(body, WRAPPED), TWO_HOSTS).calls
    assert (call.kind, call.axis, call.payload_bytes, call.count) == ("reduce_scatter", "tp", 16 * 4 * F32, 1)
    assert call.is_async


def reduced(name, operand, sync="false"):
    """An all-reduce over tp; `sync` as XLA:GPU marks one whose end follows at once."""
    config = f'backend_config={{"collective_backend_config":{{"is_sync":{sync}}}}}'
    groups = "channel_id=1, replica_groups=[2,4]<=[8]"
    return f"  %{name} = f32[16,4]{{1,0}} all-reduce-start(%{operand}), {groups}, to_apply=%add, {config}\n"


def done(name):
    return f"  %{name}.done = f32[16,4]{{1,0}} all-reduce-done(%{name})\n"


def kernel(name, size):
    """It writes size x 4 floats, and reads nothing."""
    return f"  %{name} = f32[{size},4]{{1,0}} iota(), iota_dimension=0\n"


def multiplied(name):
    return f"  %{name} = f32[4,4]{{1,0}} fusion(%p), kind=kCustom, calls=%multiplied\n"


def test_work_between_a_start_and_its_end_is_that_of_the_collective():
    copied = """  %k = (f32[16,4]{1,0}, f32[16,4]{1,0}, u32[]) copy-start(%p)
  %k.done = f32[16,4]{1,0} copy-done(%k)
"""
    body = kernel("before", 1) + reduced("a", "p") + kernel("w2", 2) + multiplied("m") + kernel("w3", 3) + done("a")
    body += kernel("w5", 5) + reduced("b", "p") + done("b") + reduced("s", "p", "true") + done("s") + copied
    body += reduced("c1", "p") + kernel("w7", 7) + reduced("c2", "p") + multiplied("m1") + kernel("w11", 11)
    body += done("c1") + kernel("w13", 13) + multiplied("m2") + done("c2") + kernel("after", 17)
    calls = read_collectives(module(body + "  ROOT %r = f32[16,4]{1,0} copy(%p)", MULTIPLIED), TWO_HOSTS).calls
    sizes = [[one.moved_bytes // (4 * F32) for one in call.beside if one.name == "iota"] for call in calls]
    # What runs beside both of the last two is counted for the first of them.
    assert sizes == [[2, 3], [], [], [7, 11], [13]]
    assert [call.is_async for call in calls] == [True, False, False, True, True]


def test_work_beside_a_wrapped_collective_lasts_until_its_last_update():
    body = """  %s = ((f32[16,4]{1,0}), f32[4,4]{1,0}, u32[]) async-start(%p), calls=%wrapped
  %u = ((f32[16,4]{1,0}), f32[4,4]{1,0}, u32[]) async-update(%s), calls=%wrapped
"""
    body += multiplied("m") + kernel("w", 3) + "  ROOT %d = f32[4,4]{1,0} async-done(%u), calls=%wrapped"
    (call,) = read_collectives(module(body, WRAPPED + MULTIPLIED), TWO_HOSTS).calls
    assert [one.moved_bytes for one in call.beside if one.name == "iota"] == [3 * 4 * F32]


@pytest.mark.parametrize(
    ("instruction", "count"),
    [
        ("call(%p), to_apply=%wrapped", 1),
        ("fusion(%p), kind=kCustom, calls=%wrapped", 1),
        ('custom-call(%p), custom_call_target="f", called_computations={%wrapped, %wrapped}', 2),
        ("reduce(%p, %p), dimensions={0}, to_apply=%add", 0),
    ],
)
def test_called_computations_are_counted(instruction, count):
    text = module(f"  ROOT %r = f32[4,4]{{1,0}} {instruction}", WRAPPED)
    assert sum(entry.count for entry in read_collectives(text, TWO_HOSTS).collectives) == count


LOOP = """
%body (x: f32[16,4]) -> f32[16,4] {
  %x = f32[16,4]{1,0} parameter(0)
  ROOT %in_body = f32[16,4]{1,0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
}

%condition (y: f32[16,4]) -> pred[] {
  %y = f32[16,4]{1,0} parameter(0)
  %in_condition = f32[16,4]{1,0} all-reduce(%y), channel_id=1, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  ROOT %go = pred[] custom-call(%in_condition), custom_call_target="positive"
}
"""


@pytest.mark.parametrize(("trips", "counts"), [(3, {"dp": 4, "tp": 3}), (1, {"dp": 2, "tp": 1}), (0, {"dp": 1})])
def test_condition_of_a_loop_runs_once_more_than_its_body(trips, counts):
    known = f'backend_config={{"known_trip_count":{{"n":"{trips}"}}}}'
    text = module(f"  ROOT %w = f32[16,4]{{1,0}} while(%p), condition=%condition, body=%body, {known}", LOOP)
    assert {entry.axis: entry.count for entry in read_collectives(text, TWO_HOSTS).collectives} == counts


# A fusion of two results, named after the first, and a loop that carries both but has no name.
RESULTS = """
%fused (a: f32[16,4]) -> (f32[16,4], f32[16,4]) {
  %a = f32[16,4]{1,0} parameter(0), metadata={op_name="transpose(x"}
  %ahead = f32[16,4]{1,0} negate(%a), metadata={op_name="jit(f)/jvp()/neg"}
  %back = f32[16,4]{1,0} negate(%a), metadata={op_name="jit(f)/mul;jit(f)/transpose(jvp())/neg"}
  ROOT %both = (f32[16,4]{1,0}, f32[16,4]{1,0}) tuple(%ahead, %back)
}
"""
TUPLE = "(f32[16,4]{1,0}, f32[16,4]{1,0})"
ALL_REDUCE = "channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add"


@pytest.mark.parametrize(
    "source",
    [
        'fusion(%p), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/jvp()/neg"}',
        "while(%p), condition=%fused, body=%fused",
    ],
    ids=["fusion", "loop"],
)
def test_pass_of_a_nameless_collective_is_that_of_its_operands(source):
    def read_root(root, *more):
        results = [f"  %g{i} = f32[16,4]{{1,0}} get-tuple-element(%s), index={i}" for i in (0, 1)]
        ledger = read_collectives(
            module("\n".join([f"  %s = {TUPLE} {source}", *results, *more, root]), RESULTS), TWO_HOSTS
        )
        return [(entry.pass_, entry.payload_bytes) for entry in ledger.collectives], ledger.notes

    size = 16 * 4 * F32
    assert read_root(f"  ROOT %r = f32[16,4]{{1,0}} all-reduce(%g0), {ALL_REDUCE}")[0] == [("forward", size)]
    found, notes = read_root(f"  ROOT %r = f32[16,4]{{1,0}} all-reduce(%g1), {ALL_REDUCE}")
    assert found == [("backward", size)]
    assert "serves several passes" in notes[1]  # the name of its operand was joined from two
    found, _ = read_root(f"  ROOT %r = {TUPLE} all-reduce(%g0, %g1), {ALL_REDUCE}")
    assert found == [("forward", size), ("backward", size)]
    joined = "  %c = f32[32,4]{1,0} concatenate(%g0, %g1), dimensions={0}"
    found, notes = read_root(f"  ROOT %r = f32[32,4]{{1,0}} all-reduce(%c), {ALL_REDUCE}", joined)
    assert found == [("backward", 2 * size)]
    assert "taken as backward" in notes[0]
    assert "counted for the last of them" in notes[1]


def test_names_with_brackets_and_commas_are_no_attributes():
    name = 'jit(f)/a, replica_groups={{0,4}}, b(/\\"c'
    groups = "replica_groups=mesh['x'=1,'y'=4,'z'=2], device_ids=([2,4]T(1,0)) {'y'}"
    metadata = f'metadata={{op_name="{name}"}}'
    body = f"  ROOT %r = f32[16,4]{{1,0}} all-reduce(%p), channel_id=1, {groups}, to_apply=%add, {metadata}"
    (call,) = read_collectives(module(body), TWO_HOSTS).calls
    assert (call.axis, call.payload_bytes, call.op_name) == ("tp", 16 * 4 * F32, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not start with 'HloModule'"),
        ("module @jit_f {}", "does not start with 'HloModule'"),
        ("HloModule m, num_partitions=8\n", "no ENTRY"),
        (module("  ROOT %r = f32[16,4] add(%p, %p)").rstrip()[:-1], "computation ENTRY %main has no end"),
        (module("  ROOT %r = f32[16,4] add(%p, %p)", partitions=4), "compiled for 4 devices, the mesh is dp=2, tp=4"),
        (
            module("  ROOT %r = f32[16,4] all-gather(%p), replica_groups=<8>"),
            "unknown spelling of replica groups: '<8>'",
        ),
        (module("  ROOT %r = f7[16,4] all-gather(%p), replica_groups={}"), "unknown element type 'f7'"),
        (module("  ROOT %r = f32[16,4] call(%p), to_apply=%gone"), "%gone is called and not there"),
        (module("  %r = f32[16,4] add(%p, %p)"), "%main has no ROOT"),
        (module("  ROOT what is this"), "not an instruction in %main: 'ROOT what is this'"),
    ],
)
def test_unreadable_text_is_named(text, message):
    with pytest.raises(ContractError, match=re.escape(message)):
        read_collectives(text, TWO_HOSTS)


def test_array_bytes_match_hand():
    assert array_bytes("((bf16[2,3]{1,0:T(8,128)(2,1)}, f32[]), (pred[<=7], s4[3], f8e4m3fn[5,0]))") == [
        ("bfloat16", 12),
        ("float32", 4),
        ("bool", 7),
        ("int4", 2),
        ("float8_e4m3fn", 0),
    ]
