"""Embedding and head that share one table on the grid: h = table[x], y = h table^T.

    B batch   S sequence   D features   V rows of the table, and logits   X by Y devices on the axes "x" and "y"

                         summa             stationary
    x_BS per device      [B/X, S]          [B/X, S]          ids
    table_VD per device  [V/X, D/Y]        [V/X, D/Y]        one parameter: its gradient is the sum over both uses
    h_BSD per device     [B/X, S, D/Y]     [B/X, S, D/Y]
    y_BSV per device     [B/X, S, V/Y]     [B/Y, S, V/X]     logits, as the grid's cross entropy takes them

The lookup is that of embedding.py. The head needs no transposed table: y = h table^T is SUMMA's second form, c b^T, and
its gradients are the other two, dh = dy table and dtable = dy^T h. Payload per device, in elements:

    y = h table^T        broadcast x: V D/Y       reduce-scatter y: B/X S V
    dh = dy table        broadcast y: B/X S V     broadcast x: V D/Y
    dtable = dy^T h      broadcast y: B/X S V     reduce-scatter x: V D/Y

In `stationary`, table^T already has the layout of the weight [D, V] of `stationary_exchanged` (linear.py): all-gather x
of h, B S D/Y, and reduce-scatter y of the logits, B S V/X; in the backward pass their transposes.

Sources: Optimus, https://arxiv.org/abs/2104.05343; Press & Wolf, https://arxiv.org/abs/1608.05859.
"""

from __future__ import annotations

import jax
from flax import nnx
from jax.sharding import Mesh

from jax_tp.collectives import map_shards
from jax_tp.grid.embedding import PLANS as EMBEDDING
from jax_tp.grid.embedding import ManualGridEmbedding, check_inputs, check_size
from jax_tp.grid.linear import BLOCK, EXCHANGED
from jax_tp.grid.product import grid_of, multiply_transposed
from jax_tp.layouts import Plan, State, child
from jax_tp.tied import Tied

__all__ = ["PLANS", "STYLES", "ManualGridTied", "build", "check_inputs"]

PLANS = {
    algorithm: Plan(x=embed.x, y=layout, children={"embed": embed}, algorithm=algorithm)
    for (algorithm, embed), layout in zip(EMBEDDING.items(), (BLOCK, EXCHANGED), strict=True)
}


# -------------------------------------------------------------------------------------------------------- manual


class ManualGridTied(Tied):
    """The lookup, and the product with the same table, transposed."""

    def __init__(self, mesh: Mesh, plan: Plan, state: State) -> None:
        self.plan, self.grid = plan, grid_of(plan)
        self.embed = ManualGridEmbedding(mesh, plan.children["embed"], child(state, "embed"))

    def logits(self, h_BSD: jax.Array) -> jax.Array:
        embed = self.plan.children["embed"]
        per_device = map_shards(
            self.body,
            in_specs=(embed.y, embed.params["embedding"]),
            out_specs=self.plan.y,
        )
        return per_device(h_BSD, self.embed.embedding[...])

    def body(self, h: jax.Array, table: jax.Array) -> jax.Array:
        return multiply_transposed(h, table, self.grid)


STYLES = {"manual": ManualGridTied}


def build(mesh: Mesh, style: str, plan: Plan, state: State, num_ids: int) -> nnx.Module:
    """The layer; `state`: the global embed.table [V, D], whose first num_ids rows are used.

    Raises ValueError for a table with fewer rows than num_ids, or whose rows x does not divide.
    """
    check_size(state["embed.table"], num_ids)
    return STYLES[style](mesh, plan, state)
