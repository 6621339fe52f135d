"""A step of Llama written down from closed formulas, in the shape that the frameworks' traces have."""

from parity.step_contract import Memory, Operation, StepTrace, TracedCollective

LLAMA_8B = {"L": 32, "D": 4096, "H": 32, "K": 8, "E": 128, "F": 14336, "V": 128256}
TIMES = {"forward": 1, "backward": 2}  # a backward pass has two matmuls for each of the forward pass
BLOCK_PASSES = (
    38  # arrays [tokens, D] that the norms, residuals, RoPE and SwiGLU of a block read and write in eager mode
)


def llama_step(framework="torch", request="r", mesh=None, batch=8, seq=4096, sizes=LLAMA_8B, recomputed=0.0):
    """Forward, backward and AdamW of megatron's plan with fsdp beside it: parameters bf16, moments float32.

    recomputed: the part of the forward pass that the backward pass does again; 0 keeps all, 1 is full checkpointing.
    """
    mesh = mesh or {"fsdp": 2, "tp": 4}
    d, tp, fsdp = sizes, mesh.get("tp", 1), mesh.get("fsdp", 1)
    tokens = batch // fsdp * seq
    block = d["D"] * (2 * d["H"] + 2 * d["K"]) * d["E"] + 3 * d["D"] * d["F"]
    own = (block * d["L"] + 2 * d["V"] * d["D"]) // tp
    collectives, operations = [], []
    for pass_, once in TIMES.items():
        times = once + (recomputed if pass_ == "backward" else 0)
        collectives.append(
            TracedCollective("all_reduce", "tp", "bfloat16", 2 * tokens * d["D"], 2 * d["L"] + 1, pass_, d["L"])
        )
        gathered = TracedCollective("all_gather", "fsdp", "bfloat16", 2 * block // tp, d["L"], pass_, d["L"], True)
        collectives.append(gathered)
        for name, n, k in (
            ("qkv", (d["H"] + 2 * d["K"]) * d["E"] // tp, d["D"]),
            ("out", d["D"], d["H"] * d["E"] // tp),
            ("gate_up", 2 * d["F"] // tp, d["D"]),
            ("down", d["D"], d["F"] // tp),
        ):
            operations.append(matmul(pass_, tokens, n, k, round(times * d["L"]), name))
        operations.append(matmul(pass_, tokens, d["V"] // tp, d["D"], once, "head"))
        products = 2 if pass_ == "forward" else 5 + 2 * (recomputed == 1)
        flops = products * tokens * seq * d["H"] // tp * d["E"]  # causal: half of 2 flops each
        operations.append(Operation(pass_, "attention", flops=flops, count=d["L"], name="attention"))
        moved = round(times * 2 * BLOCK_PASSES * tokens * d["D"])
        operations.append(Operation(pass_, "memory", moved_bytes=moved, count=d["L"], name="norms"))
    collectives.append(
        TracedCollective("reduce_scatter", "fsdp", "bfloat16", 2 * block // tp, d["L"], "backward", d["L"], True)
    )
    operations.append(Operation("optimizer", "memory", moved_bytes=22 * own // fsdp, name="adamw"))
    shard = own // fsdp
    kept = 2 * tokens * d["D"] * d["L"]
    memory = Memory(2 * shard, 2 * shard, 8 * shard, kept, 2 * block // tp, 12 * shard + kept + 2 * block // tp, "test")
    collectives = [entry for entry in collectives if mesh.get(entry.axis, 1) > 1]
    return StepTrace(framework, request, tuple(collectives), tuple(operations), memory)


def matmul(pass_, m, n, k, count, name):
    return Operation(pass_, "matmul", m, n, k, 1, "bfloat16", 2 * m * n * k, 2 * (m * k + k * n + m * n), count, name)
