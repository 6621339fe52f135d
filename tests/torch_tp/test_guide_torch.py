"""What the guide says of PyTorch: names that can be imported, defaults that are so."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.distributed.tensor
from torch import nn
from torch.nn import functional as F  # noqa: N812  its name everywhere

from parity.guide.tables import read_table

NAMES = sorted({name for row in read_table("concept") for name in row["torch"] if " " not in name})
DEFAULTS = read_table("default")


def resolve(name):
    """The object of a dotted name: modules first, then attributes."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AttributeError(name)


def raised(call) -> str:
    """The name of what a call raises."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "nothing"


def clipped(values, max_norm) -> float:
    """The last of a gradient's elements after clipping."""
    param = nn.Parameter(torch.zeros(len(values)))
    param.grad = torch.tensor(values)
    nn.utils.clip_grad_norm_([param], max_norm)
    return param.grad[-1].item()


@pytest.mark.parametrize("name", NAMES)
def test_name_is_there(name):
    assert resolve(name) is not None


@pytest.mark.parametrize("row", DEFAULTS, ids=lambda row: row["what"])
def test_default_is_what_the_guide_says(row):
    expression, value = row["torch_probe"]
    assert eval(expression, {"torch": torch, "nn": nn, "F": F, "raised": raised, "clipped": clipped}) == value


def test_a_name_that_is_not_there_is_seen():
    with pytest.raises(AttributeError):
        resolve("torch.distributed.tensor.Sharded")
