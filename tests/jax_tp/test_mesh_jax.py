"""Joining a group behind a proxy: the coordinator is excepted from it, beside what the user has excepted."""

from __future__ import annotations

import os

import jax
import pytest

from jax_tp import mesh


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "node7"),
        ({"no_grpc_proxy": ""}, "node7"),
        ({"no_grpc_proxy": "a.org,.b.org"}, "a.org,.b.org,node7"),
        ({"no_proxy": "a.org"}, "a.org,node7"),  # gRPC reads it only where no_grpc_proxy is not set
        ({"no_proxy": "a.org", "no_grpc_proxy": "b.org"}, "b.org,node7"),
    ],
)
def test_hosts_that_the_user_excepted_stay_so(monkeypatch, given, expected):
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.setenv(name, "")  # to be restored: `join` sets it
        monkeypatch.delenv(name)
    for name, value in {**given, "MASTER_ADDR": "node7"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(jax, "local_devices", list)
    seen = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: seen.append(dict(os.environ)))
    mesh.join("cpu")
    assert [environment["no_grpc_proxy"] for environment in seen] == [expected]
