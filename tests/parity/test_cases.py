"""The case data holds together: every variant can be listed and made."""

from __future__ import annotations

import pytest

from parity.cases import FAMILIES
from parity.cases.family import Family


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{family.layer}/{family.plan}")
def test_every_tensor_of_a_variant_has_a_layout(family: Family):
    """A variant that a family takes over from another may ask for an input which this one has not got."""
    for variant in family.variants:
        assert {*family.batch, *variant.inputs, *variant.params} <= set(family.tensors), variant.name
