"""A group that is not there dispatches what a real one would, and leaves nothing behind."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor._collective_utils import MeshTopoInfo

from torch_tp.grid import matmul
from torch_tp.layouts import place
from torch_tp.mesh import fake_group, make_mesh
from torch_tp.trace import RecordCollectives

M, K, N = 96, 160, 224


def all_gathers(num_devices, mesh):
    """What the forward pass of `gathered` dispatches, (axis, payload in elements)."""
    with fake_group(num_devices):
        mesh = make_mesh(mesh, "cpu")
        plan = matmul.PLANS["gathered"]
        x, w = (place(np.zeros(shape, np.float32), mesh, plan.x) for shape in ((M, K), (K, N)))
        module = matmul.build(mesh, "manual", plan, {"w": np.zeros((K, N), np.float32)})
        with RecordCollectives(mesh) as record:
            assert module(x).shape == (M, N) == (x @ w).shape
    return [(call.axis, call.payload_bytes // 4) for call in record.calls[:2]]


@pytest.mark.parametrize(("x", "y"), [(2, 2), (2, 4), (16, 16), (32, 32)])
def test_fake_group_dispatches_the_formula_at_any_size(x, y):
    assert all_gathers(x * y, {"x": x, "y": y}) == [("y", M // x * K), ("x", K * N // y)]
    assert not dist.is_initialized()


def test_fake_group_is_left_when_something_raises_inside():
    with pytest.raises(RuntimeError, match="of ours"), fake_group(4):
        raise RuntimeError("of ours")
    assert not dist.is_initialized()
    assert all_gathers(4, {"x": 2, "y": 2})  # and its meshes are not taken for those of the next


def test_dtensor_takes_the_inner_axis_for_one_inside_a_node():
    with fake_group(16):
        outer, inner = MeshTopoInfo.build_from_mesh(make_mesh({"x": 4, "y": 4}, "cpu")).mesh_dim_bandwidth
    assert inner > outer
    with fake_group(4):
        outer, inner = MeshTopoInfo.build_from_mesh(make_mesh({"x": 2, "y": 2}, "cpu")).mesh_dim_bandwidth
    assert inner == outer
    with fake_group(16, gpus_per_node=16):
        outer, inner = MeshTopoInfo.build_from_mesh(make_mesh({"x": 4, "y": 4}, "cpu")).mesh_dim_bandwidth
    assert inner == outer


@pytest.mark.parametrize(("between", "is_async"), [(None, False), (torch.add, False), (torch.mm, True)])
def test_a_collective_is_hidden_by_products_only(between, is_async):
    send = torch.ops._c10d_functional.all_reduce
    with fake_group(4):
        mesh, x = make_mesh({"tp": 4}, "cpu"), torch.zeros(8, 8)
        with RecordCollectives(mesh) as record:
            y = send(x, "sum", mesh.get_group("tp").group_name)
            if between is not None:
                between(x, x)
            torch.ops._c10d_functional.wait_tensor(y)
    assert [call.is_async for call in record.calls] == [is_async]
