"""What the grid's layers dispatch on grids of any shape, beside data parallelism too, against the closed formulas."""

import numpy as np
import pytest

from parity.cases import FAMILIES
from parity.cases.family import Selection, cases_of
from parity.cases.notation import shape_of
from parity.check import check_collectives
from parity.contract import Collective
from parity.ledgers import with_numbers
from torch_tp.layers import LAYERS
from torch_tp.mesh import fake_group, make_mesh
from torch_tp.tasks import place_batch
from torch_tp.trace import RecordCollectives
from torch_tp.train import loss_and_gradients

WIDE, ODD, BESIDE = {"x": 2, "y": 4}, {"x": 3, "y": 3}, {"dp": 2, "x": 2, "y": 2}
CASES = [
    ("grid.block", "summa", "gpt", WIDE),
    ("grid.block", "cannon", "llama", ODD),
    ("grid.block", "stationary", "llama", WIDE),
    ("grid.models.gpt", "stationary", "gpt2", WIDE),
    ("hybrid.grid.block", "dp", "llama", BESIDE),
]


def dispatched(family, case):
    """The collectives of one step on devices that are not there."""
    params, batch = family.shapes(case)
    arrays = {name: np.ones(shape, np.int64 if name in family.ids else np.float64) for name, shape in batch.items()}
    arrays["target"] = np.ones(shape_of(family.tensors["y"], case.dims))
    with fake_group(case.num_devices):
        mesh, layer = make_mesh(case.mesh, "cpu"), LAYERS[case.layer]
        plan, state = layer.PLANS[case.plan], {name: np.ones(shape) for name, shape in params.items()}
        module = layer.build(mesh, case.style, plan, state, **case.options)
        inputs, target = place_batch(arrays, mesh, plan)
        with RecordCollectives(mesh) as record:
            loss_and_gradients(module, inputs, target, plan.constants)
    return [Collective(call.kind, call.axis, call.dtype, call.payload_bytes, 1, call.pass_) for call in record.calls]


@pytest.mark.parametrize(("layer", "plan", "variant", "mesh"), CASES, ids=lambda value: str(value))
def test_layer_dispatches_its_formula(layer, plan, variant, mesh):
    family = next(family for family in FAMILIES if (family.layer, family.plan) == (layer, plan))
    (case,) = cases_of(family, Selection((mesh,), ("float64",), (variant,)))
    got, want = dispatched(family, case), with_numbers(family.expected(case), case)
    assert check_collectives("torch", got, want)[0].reasons == []
    assert check_collectives("torch", got[1:], want)[0].verdict == "fail"
