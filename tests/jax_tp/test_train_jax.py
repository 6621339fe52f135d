"""A step of training, on one device."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jax_tp.optimizer import Recipe, make_optimizer
from jax_tp.train import train_step
from parity.cases.training import RECIPE


class Difference(nnx.Module):
    """y = w x - labels: with the two inputs exchanged it is another number."""

    def __init__(self):
        self.w = nnx.Param(jnp.array(3.0))

    def __call__(self, x, labels):
        return self.w[...] * x - labels


@pytest.mark.parametrize("compile_", [lambda step: step, nnx.jit], ids=["eager", "jit"])
def test_inputs_come_in_the_order_of_the_batch_not_of_their_names(compile_):
    module, recipe = Difference(), Recipe(**RECIPE)
    optimizer = make_optimizer(module, recipe)
    inputs = {"x": jnp.array(2.0), "labels": jnp.array(1.0)}
    microbatches = [(inputs, jnp.array(0.0))]
    step = compile_(lambda module, optimizer: train_step(module, optimizer, microbatches, recipe))
    assert step(module, optimizer).loss == 5.0  # a scalar y is its own loss
    assert jax.tree.leaves(inputs)[0] == 1.0  # a tree of these inputs has the labels first
