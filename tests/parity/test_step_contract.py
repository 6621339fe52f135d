"""What crosses the border comes back as it was."""

import json

import pytest

from parity.step_contract import Memory, Operation, StepRequest, StepTrace, TracedCollective

PRODUCT = Operation("forward", "matmul", 8, 16, 4, 2, "bfloat16", 2048, 100, 3, "mm")


def test_trace_survives_json():
    trace = StepTrace(
        framework="torch",
        case="llama",
        collectives=(
            TracedCollective("all_reduce", "tp", "bfloat16", 64, 32, "backward", None, True, "mlp.py:3", "all-reduce"),
            TracedCollective("all_gather", "fsdp", "bfloat16", 64, is_async=True, beside=()),
            TracedCollective("all_gather", "fsdp", "bfloat16", 64, is_async=True, beside=(PRODUCT,)),
        ),
        operations=(PRODUCT,),
        memory=Memory(1, 2, 3, 4, 5, 15, "torch tracer"),
        seconds=0.5,
        notes=("a note",),
    )
    assert StepTrace.from_json(json.loads(json.dumps(trace.to_json()))) == trace
    skipped = StepTrace("jax", "llama", skipped="install tensor-parallel-parity[a100]")
    assert StepTrace.from_json(json.loads(json.dumps(skipped.to_json()))) == skipped


def test_request_survives_json_with_its_axes_in_order():
    request = StepRequest("r", "models.llama", "megatron", "manual", {"fsdp": 64, "tp": 4}, {"B": 64}, {"num_ids": 7})
    again = StepRequest.from_json(json.loads(json.dumps(request.to_json())))
    assert again == request
    assert list(again.mesh) == ["fsdp", "tp"]
    assert again.num_devices == 256


def test_a_record_with_a_field_too_many_or_too_few_is_refused():
    data = PRODUCT.to_json()
    assert data["pass"] == "forward"
    with pytest.raises(TypeError, match="'pass_' is unknown"):
        Operation.from_json({**data, "pass_": "forward"})
    for missing in data:  # one with a default too: a ledger that is missing is none that is empty
        with pytest.raises(TypeError, match=f"'{missing}' is missing"):
            Operation.from_json({key: value for key, value in data.items() if key != missing})
    with pytest.raises(TypeError, match="no record"):
        Operation.from_json(None)
