"""What one device computes and holds, against shapes by hand."""

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard

from torch_tp.footprint import RecordFootprint
from torch_tp.layouts import place
from torch_tp.mesh import fake_group, make_mesh

M, K, N, TP = 6, 8, 12, 2


@pytest.fixture
def mesh():
    with fake_group(TP):
        yield make_mesh({"tp": TP}, "cpu")


def work(record):
    return {(one.pass_, one.kind, one.name, one.m, one.n, one.k, one.moved_bytes): n for one, n in record.work.items()}


def test_product_of_shards_counts_what_a_device_has_and_not_how_its_global_shape_is_found(mesh):
    x = place(torch.empty(M, K), mesh, Replicate())
    w = place(torch.empty(K, N), mesh, Shard(1))
    with RecordFootprint(mesh) as record:
        x @ w
        x @ w
    moved = 4 * (M * K + K * N // TP + M * N // TP)
    assert work(record) == {("forward", "matmul", "aten::mm", M, N // TP, K, moved): 2}
    assert {one.flops for one in record.work} == {2 * M * N // TP * K}


def test_a_product_into_a_given_tensor_writes_it_and_one_that_adds_reads_it(mesh):
    a, b, c = torch.empty(M, K), torch.empty(K, N), torch.empty(M, N)
    with RecordFootprint(mesh) as record:
        torch.mm(a, b, out=c)
        c.addmm_(a, b)
    assert [(one.kind, one.flops) for one in record.work] == [("matmul", 2 * M * N * K)] * 2
    assert [one.moved_bytes for one in record.work] == [4 * (M * K + K * N + n * M * N) for n in (1, 2)]


def test_bytes_of_views_copies_and_lookups(mesh):
    table, ids = torch.empty(100, 4), torch.zeros(3, dtype=torch.int64)
    with RecordFootprint(mesh) as record:
        table.t().view(4, 100)  # nothing moves
        table.zero_()  # written
        table.add_(1.0)  # read and written
        torch.nn.functional.embedding(ids, table)  # three rows of it, and the ids
        torch.empty(1).expand(50, 50) + table[:50, :1]  # of what is expanded, what is there; a view reads its elements
    assert [one.moved_bytes for one in record.work] == [1600, 3200, 3 * 8 + 2 * 48, 4 + 200 + 10000]


def test_peak_is_told_by_who_holds_it(mesh):
    p = torch.nn.Parameter(torch.empty(4, 4))  # 64 B
    with RecordFootprint(mesh) as record:
        x = torch.empty(8, 4)  # 128 B, kept for the gradient of p
        y = x @ p  # 128 B, kept by relu
        loss = y.relu().sum()
        del x, y
        loss.backward()
    keys = record.ledger.keys
    held = record.ledger.peak({"parameters": keys([p]), "gradients": keys([p.grad])})
    assert held["parameters"] == held["gradients"] == 64
    assert held["activations"] >= 128 + 128
    assert held["total"] <= 64 + 64 + 5 * 128 + 64
    assert record.ledger.turn is not None
    before = len(record.ledger.events)
    p.grad = None
    assert record.ledger.events[before:] == [(record.ledger.events[-1][0], -64)]


def test_storage_that_is_resized_is_no_activation(mesh):
    with RecordFootprint(mesh) as record:
        whole = torch.empty(64)
        whole.untyped_storage().resize_(0)
        whole.untyped_storage().resize_(256)
        record.ledger.turn = len(record.ledger.events)
    held = record.ledger.peak({})
    assert held == {"activations": 0, "temporaries": 256, "total": 256}
