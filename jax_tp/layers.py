"""The registry of layers and models: each module has PLANS and `build(mesh, style, plan, state, **options)`."""

from __future__ import annotations

from jax_tp import (
    attention,
    block,
    cross_entropy,
    dropout,
    embedding,
    fused_attention,
    hybrid,
    linear,
    mlp,
    norm,
    replicated_kv,
    swiglu,
    tied,
)
from jax_tp.grid import attention as grid_attention
from jax_tp.grid import block as grid_block
from jax_tp.grid import cross_entropy as grid_cross_entropy
from jax_tp.grid import embedding as grid_embedding
from jax_tp.grid import linear as grid_linear
from jax_tp.grid import matmul
from jax_tp.grid import mlp as grid_mlp
from jax_tp.grid import norm as grid_norm
from jax_tp.grid import tied as grid_tied
from jax_tp.grid.models import gpt as grid_gpt
from jax_tp.grid.models import vit as grid_vit
from jax_tp.models import bert, gpt, llama, vit

LAYERS = {
    "attention": attention,
    "block": block,
    "fused_attention": fused_attention,
    "replicated_kv": replicated_kv,
    "linear": linear,
    "grid.attention": grid_attention,
    "grid.block": grid_block,
    "grid.cross_entropy": grid_cross_entropy,
    "grid.embedding": grid_embedding,
    "grid.linear": grid_linear,
    "grid.matmul": matmul,
    "grid.mlp": grid_mlp,
    "grid.models.gpt": grid_gpt,
    "grid.models.vit": grid_vit,
    "grid.norm": grid_norm,
    "grid.tied": grid_tied,
    "mlp": mlp,
    "norm": norm,
    "swiglu": swiglu,
    "dropout": dropout,
    "embedding": embedding,
    "cross_entropy": cross_entropy,
    "tied": tied,
    "hybrid.block": hybrid.over(block, "megatron"),
    "hybrid.grid.block": hybrid.over(grid_block, "summa"),
    "hybrid.grid.models.gpt": hybrid.over(grid_gpt, "summa", is_mean=True),
    "hybrid.models.gpt": hybrid.over(gpt, "megatron", is_mean=True),
    "hybrid.models.llama": hybrid.over(llama, "megatron", is_mean=True),
    "hybrid.models.vit": hybrid.over(vit, "field", is_mean=True),
    "models.bert": bert,
    "models.gpt": gpt,
    "models.llama": llama,
    "models.vit": vit,
}
