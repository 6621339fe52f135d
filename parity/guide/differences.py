"""Where the two packages are allowed to differ in names, and why. A test holds every row to be true, and no more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """One name of one file: what it is called with on each side ("" if it is not there), and the reason."""

    file: str
    name: str
    torch: str
    jax: str
    reason: str


DEVICE = "A PyTorch mesh names its device type; a JAX mesh is made of devices, by default those of the process group."
LAYOUT_WORDS = (
    "A PyTorch layout is a placement for each mesh axis, a JAX layout a PartitionSpec over the tensor's dims."
)
AXES = "An axis is a DeviceMesh of one dim in PyTorch, a name in JAX."
TRANSPOSED = "PyTorch stores the weight of a linear as [out, in], Flax as [in, out], which is the canonical order."
HOOKS = "`parallelize_module` places inputs and outputs by hooks; in JAX the forward says it with constraints."
GRADIENTS = "autograd leaves gradients on the parameters and needs a leaf for x; JAX returns them."
OBSERVED = "PyTorch's collectives are seen as they are dispatched, JAX's read from the jaxpr and the compiled program."
COMPILED = "A JAX step is a pure function that is compiled ahead of time, with layouts for its outputs."
A100 = "XLA can compile for GPUs that are not there; what PyTorch dispatches does not depend on the device."

DEVICES = "A PyTorch process has one device, a JAX process all that it is given: of a node, or on the CPU all."
XLA_TOLD = "What runs beside a collective is decided by XLA's flags; in PyTorch, by the streams that code names."
LOOP = "XLA compiles one block and loops over it; PyTorch dispatches every block, and compiles none."
DISPATCHED = "PyTorch's operations and storages are seen as they come and go; XLA plans them, and its plan is read."

SHARE = "`fully_shard` and `replicate` work on any module in any style; in JAX the styles say it in their own ways."

DIFFERENCES = (
    Difference(
        "mesh.py",
        "fake_group",
        "num_devices, gpus_per_node",
        "",
        "JAX compiles for devices that are not there: `a100_devices`.",
    ),
    Difference("mesh.py", "inner_axes", "mesh", "", "JAX reduces over any axes together, and needs no group for it."),
    Difference("mesh.py", "join", "device", "device, local_devices", DEVICES),
    Difference("mesh.py", "make_mesh", "axes, device", "axes, axis_type, devices", DEVICE),
    Difference("layouts.py", "to_tensor", "array, device", "", "JAX takes NumPy arrays as they are."),
    Difference("layouts.py", "to_numpy", "tensor", "", "JAX arrays convert to NumPy as they are."),
    Difference("layouts.py", "placements_of", "layout", "", LAYOUT_WORDS),
    Difference("layouts.py", "place", "array, mesh, placement", "array, mesh, spec", LAYOUT_WORDS),
    Difference("layouts.py", "canonical", "name, tensor", "", TRANSPOSED),
    Difference("layouts.py", "named_parameters", "", "params", "nn.Module has a method of this name."),
    Difference("layouts.py", "describe", "tensor", "array, device", DEVICES),
    Difference(
        "collectives.py",
        "map_shards",
        "",
        "body, in_specs, out_specs",
        "A local_map may stand in code of one device; a shard_map over axes that are manual already may not.",
    ),
    Difference("linear.py", "PlainLinear", "device, state", "", "`parallelize_module` starts from an unsharded layer."),
    Difference("linear.py", "AutoColumnLinear.__call__", "", "x_BSD", HOOKS),
    Difference("linear.py", "AutoRowLinear.__call__", "", "x_BSD", HOOKS),
    Difference("linear.py", "values", "", "module", "Flax parameters are variables that hold arrays."),
    Difference("linear.py", "linear", "", "x, w, b", "torch.nn.functional.linear."),
    Difference(
        "packed.py", "PlainPackedLinear", "device, state", "", "`parallelize_module` starts from a plain layer."
    ),
    Difference("packed.py", "ShardedPackedLinear.__call__", "", "x_BSD", "DTensors enter torch's own functions."),
    Difference("packed.py", "PackedColwiseParallel", "inherited", "", HOOKS),
    Difference("norm.py", "shard_norm", "module, mesh, plan", "", HOOKS),
    Difference("norm.py", "AutoLayerNorm.__call__", "", "x_BSD", HOOKS),
    Difference("norm.py", "AutoRmsNorm.__call__", "", "x_BSD", HOOKS),
    Difference("dropout.py", "AutoDropout.__call__", "", "x, step", "A mask of DTensors lies as x does; XLA is told."),
    Difference("embedding.py", "PlainEmbedding", "device, state", "", "As for PlainLinear."),
    Difference("embedding.py", "shard_gradient", "weight", "", "XLA gives each device the rows of its own shard."),
    Difference(
        "attention.py", "constant", "array, like", "", "DTensors mix only with DTensors; JAX takes NumPy arrays."
    ),
    Difference("cross_entropy.py", "number_logits", "x_BSV", "", "In JAX an arange takes the sharding that it meets."),
    Difference(
        "latitude_error.py",
        "AutoLatitudeError.__call__",
        "",
        "x_BTF, truth_BCIJ",
        "PyTorch's typed code serves as `auto`: `parallelize_module` has no style for a loss.",
    ),
    Difference("optimizer.py", "moments", "optimizer, module", "optimizer", "PyTorch keeps them by parameter."),
    Difference(
        "optimizer.py", "place_optimizer", "", "optimizer, module, mesh", "PyTorch makes them as it first steps."
    ),
    Difference("optimizer.py", "clip_by_global_norm", "parameters, max_norm", "grads, max_norm", GRADIENTS),
    Difference(
        "train.py",
        "train_step",
        "module, optimizer, schedule, microbatches, recipe",
        "module, optimizer, microbatches, recipe",
        "An Optax schedule is part of the optimizer.",
    ),
    Difference(
        "grid/collectives.py", "wait", "x", "", "PyTorch's collectives return before they are done; XLA schedules."
    ),
    Difference("grid/collectives.py", "in_order", "", "()", "PyTorch issues collectives in program order."),
    Difference("grid/product.py", "axes_of", "mesh, layout", "layout", AXES),
    Difference("grid/product.py", "grid_of", "mesh, plan, panel", "plan, panel", AXES),
    Difference(
        "grid/chain.py", "multiply_all", "x, ws, mesh, plan, panel", "x, ws, plan, panel", "JAX knows axes by name."
    ),
    Difference(
        "grid/chain.py", "run", "question, mesh, operands, cotangent", "question, operands, cotangent", "As above."
    ),
    Difference("grid/bench.py", "make_call", "question, device", "question", "As for time_step."),
    Difference("grid/bench.py", "bench", "question, rank, device, num_pairs", "question, rank, num_pairs", "As above."),
    Difference("grid/chain.py", "HeldBytes", "()", "", "XLA's memory analysis."),
    Difference("grid/chain.py", "Traced", "temporary_bytes", "compiled, temporary_bytes", OBSERVED),
    Difference("partitioners.py", "layout_of", "letters", "letters, axes", LAYOUT_WORDS),
    Difference("partitioners.py", "letters_of", "layout", "layout, axes", LAYOUT_WORDS),
    Difference("partitioners.py", "all_to_alls_of_nccl", "()", "", A100),
    Difference(
        "partitioners.py", "why_types_refuse", "", "question", "DTensor redistributes where JAX's types refuse."
    ),
    Difference("questions.py", "as_collectives", "calls", "", OBSERVED),
    Difference("grid/matmul.py", "AutoPartitioner.__call__", "", "x_MK", HOOKS),
    Difference("replicated_kv.py", "attend_own", "mesh, heads, q, k, v", "", "JAX copies w_k instead."),
    Difference("replicated_kv.py", "AutoReplicatedKv.partition", "name, module, mesh", "", HOOKS),
    Difference("replicated_kv.py", "summed", "parameter", "", "In JAX the transpose of copying w_k sums its gradient."),
    Difference("replicated_kv.py", "shape_of_copies", "", "w, size, rep", "PyTorch has local_map instead."),
    Difference("replicated_kv.py", "AutoReplicatedKv.copies", "", "w", "As for shape_of_copies."),
    Difference("replicated_kv.py", "TypedReplicatedKv.copies", "", "w", "As for shape_of_copies."),
    Difference("hybrid.py", "AutoDataParallel", "", "inherited", SHARE),
    Difference("hybrid.py", "DataParallel", "mesh, axis, inner, is_mean", "mesh, axis, plan, inner, is_mean", SHARE),
    Difference("hybrid.py", "DataParallel.mean_of_means", "mean, labels", "", SHARE),
    Difference("hybrid.py", "ManualDataParallel", "", "inherited", SHARE),
    Difference("hybrid.py", "TypedDataParallel", "", "inherited", SHARE),
    Difference("hybrid.py", "check_divisible", "inner, axis, size", "", "In JAX `shard` finds it out."),
    Difference("hybrid.py", "inner_mesh", "mesh", "", "Per-device code in JAX names the axes that it means."),
    Difference("hybrid.py", "is_kept", "", "primitive", "`fully_shard` frees what it gathers; JAX is told so."),
    Difference("hybrid.py", "on_batch", "layout, has_batch", "plan, axis", LAYOUT_WORDS),
    Difference("hybrid.py", "DataParallel.gather_block", "", "prefix, params", LOOP),
    Difference("hybrid.py", "specs_of", "", "params", "`fully_shard` remembers what it does to each parameter."),
    Difference("hybrid.py", "is_stacked", "", "path", LOOP),
    Difference("hybrid.py", "shard", "", "param, mesh, path", "`fully_shard`."),
    Difference("hybrid.py", "whole_spec", "", "param", "A PartitionSpec may leave out dims at its end."),
    Difference("train.py", "like", "local, other", "", GRADIENTS),
    Difference("train.py", "leaves_of", "", "inputs, constants", GRADIENTS),
    Difference("models/common.py", "of_one_block", "", "array", LOOP),
    Difference("models/common.py", "Loop", "", "mesh, block, stacked", LOOP),
    Difference("models/common.py", "recomputed", "", "run", LOOP),
    Difference("models/common.py", "unchanged", "", "params", LOOP),
    Difference("trace.py", "source_line", "()", "", OBSERVED),
    Difference(
        "trace.py",
        "Call",
        "kind, axis, dtype, payload_bytes, pass_, is_async, source_line, op_name",
        "kind, axis, dtype, payload_bytes, pass_",
        "The compiled program says the rest.",
    ),
    Difference("trace.py", "RecordCollectives", "mesh", "", OBSERVED),
    Difference("trace.py", "declared_collectives", "", "closed, mesh", OBSERVED),
    Difference("trace.py", "why_no_a100_compiler", "", "()", A100),
    Difference("trace.py", "a100_devices", "", "num_devices, gpus_per_node", A100),
    Difference("footprint.py", "Work", "pass_, kind, name, dtype, m, n, k, batch, flops, moved_bytes", "", DISPATCHED),
    Difference("footprint.py", "RecordFootprint", "work", "", DISPATCHED),
    Difference("footprint.py", "tensors_in", "tree", "", DISPATCHED),
    Difference("footprint.py", "describe_work", "func, args, kwargs, result, pass_", "", DISPATCHED),
    Difference("footprint.py", "touched_bytes", "tensor", "", DISPATCHED),
    Difference("footprint.py", "Ledger", "events, turn", "", DISPATCHED),
    Difference("footprint.py", "sizes_after", "events", "", DISPATCHED),
    Difference("footprint.py", "shard_bytes", "", "state", DISPATCHED),
    Difference("footprint.py", "held_bytes", "", "compiled, module, optimizer", DISPATCHED),
    Difference("steps.py", "Chunks", "tensor, num_chunks, dim", "", SHARE),
    Difference("steps.py", "make_moments", "optimizer", "", "optax makes the moments with the optimizer."),
    Difference("steps.py", "local", "tensor", "", "What JAX holds is read from shardings."),
    Difference("steps.py", "states_of", "optimizer", "", "What JAX holds is read from shardings."),
    Difference("steps.py", "collectives_of", "record", "", OBSERVED),
    Difference("steps.py", "stacked", "", "params", LOOP),
    Difference("steps.py", "flags_note", "", "name, flags", XLA_TOLD),
    Difference(
        "steps.py", "run", "module, mesh, batch, has_optimizer", "module, mesh, batch, has_optimizer, flags", XLA_TOLD
    ),
    Difference("doctor.py", "num_gpus", "", "()", "torch.cuda.device_count."),
    Difference("timing.py", "wait", "device", "outputs", "CUDA waits for a device, JAX for arrays."),
    Difference("timing.py", "align", "device", "()", "CUDA waits for a device, JAX for arrays."),
    Difference("timing.py", "time_once", "step, device", "step", "As for wait."),
    Difference("timing.py", "time_step", "step, device, repeats", "step, repeats", "As for wait."),
    Difference("worker.py", "device_name", "device", "()", "JAX knows its devices."),
    Difference("worker.py", "backend_name", "", "device", "torch.distributed.get_backend."),
    Difference("checkpoint.py", "is_writer", "tensor", "", "A shard of a jax.Array knows which replica it is."),
    Difference("checkpoint.py", "start_state", "optimizer, param", "", "Optax makes the moments with the optimizer."),
    Difference(
        "checkpoint.py",
        "save",
        "directory, names, module, optimizer, schedule",
        "directory, names, module, optimizer",
        "An Optax schedule is part of the optimizer.",
    ),
    Difference(
        "checkpoint.py",
        "load",
        "directory, names, module, optimizer, schedule",
        "directory, names, module, optimizer",
        "An Optax schedule is part of the optimizer.",
    ),
    Difference("checkpoint.py", "read_array", "", "checkpoint, name, like", "PyTorch copies into the shard it has."),
    Difference(
        "checkpoint.py",
        "resume",
        "optimizer, schedule, count",
        "optimizer, values, count",
        "An Optax schedule is part of the optimizer, whose arrays are replaced, not written into.",
    ),
    Difference(
        "examples/common.py", "start_group", "device", "", "A JAX process can drive several devices, so one will do."
    ),
    Difference(
        "examples/__init__.py", "without_driver_lines", "", "()", "JAX's CUDA plugin logs that it finds no driver."
    ),
    Difference("examples/common.py", "use_all_devices", "", "device", "As for start_group."),
    Difference("examples/common.py", "keep_stdout_ours", "", "()", "Gloo tells JAX's stdout whom it is connected to."),
    Difference("examples/common.py", "by_name", "names, tensors", "names, params", TRANSPOSED),
    Difference("examples/common.py", "show_shards", "name, tensor, mesh", "name, array, mesh", "As for describe."),
    Difference("examples/common.py", "whole", "tensor", "array", "As for describe."),
    Difference(
        "native_checkpoint.py",
        "state_of",
        "module, optimizer, schedule",
        "module, optimizer",
        "As for save of checkpoint.py.",
    ),
    Difference(
        "native_checkpoint.py",
        "save",
        "directory, module, optimizer, schedule",
        "directory, module, optimizer",
        "As for save of checkpoint.py.",
    ),
    Difference(
        "native_checkpoint.py",
        "load",
        "directory, module, optimizer, schedule",
        "directory, module, optimizer",
        "As for save of checkpoint.py.",
    ),
    Difference("native_checkpoint.py", "put", "", "node, kind, values", "torch.distributed.checkpoint.state_dict."),
    Difference("native_checkpoint.py", "contents", "directory", "", "Orbax gives a tree of shapes, as `shapes` takes."),
    Difference("native_checkpoint.py", "part_of", "state, prefix", "", "DCP has one flat dict, Orbax nested ones."),
    Difference("tasks.py", "make_step", "", "case, mesh, arrays", COMPILED),
    Difference("tasks.py", "make_train_step", "", "case, mesh, arrays", COMPILED),
    Difference("tasks.py", "call_program", "", "case, jitted, arguments", COMPILED),
    Difference("tasks.py", "is_shapes", "", "arrays", A100),
    Difference("tasks.py", "one_step", "case, mesh, arrays, device", "case, mesh, arrays", "As for time_step."),
    Difference("tasks.py", "training", "case, mesh, arrays, device", "case, mesh, arrays", "As for time_step."),
    Difference("worker.py", "trace_case", "", "case, run", A100),
    Difference("worker.py", "do", "asked, run, rank, device", "asked, run, rank, device, is_alone", A100),
    Difference("worker.py", "coordinates", "", "mesh, rank", "DeviceMesh.get_coordinate."),
    Difference("worker.py", "run_case", "case, run, rank, device", "case, run, device", DEVICES),
    Difference("worker.py", "write_shards", "tensors, case, run, rank", "tensors, case, run, rank, place", DEVICES),
    Difference("worker.py", "write_hlo", "", "compiled, case, run, target", COMPILED),
)
