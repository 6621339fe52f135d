"""The textbook formula of every layer, in NumPy; gradients by the library `autograd`.

Dims: B batch, S sequence, D model, F hidden. Parameters and batch are flat dicts of arrays. A layer is one function
in the table LAYERS; the loss and the gradients follow from it.

The formulas run in any arithmetic that `evaluate` is given: float64 (the oracle), `parity.rounding_model` or
`parity.integer_check`. They are written as frameworks compute them, with the tokens flattened and tanh' as 1 - tanh^2,
so that each step rounds where a framework's does.
"""

from parity.reference.evaluate import LAYERS, Arithmetic, evaluate, output
from parity.reference.formula import Arrays
from parity.reference.train import train

__all__ = ["LAYERS", "Arithmetic", "Arrays", "evaluate", "output", "train"]
