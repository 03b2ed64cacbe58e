# SPDX-License-Identifier: Apache-2.0
"""The `torch.compile` backend: Dynamo's graphs through AOTAutograd to MLX.

AOTAutograd makes a graph of ATen operators without mutation, copies mutated inputs back, and gives
outputs that alias inputs or one another as PyTorch gives them.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._guards import CompileContext, TracingContext

from vllm_metal import envs
from vllm_metal.compile.convert import convert
from vllm_metal.compile.device import device
from vllm_metal.compile.errors import CompileError
from vllm_metal.compile.graph import LoweredGraph
from vllm_metal.compile.reports import record, record_refusal


def mlx(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], **options: Any
) -> Callable[..., Any]:
    """`torch.compile(model, backend="mlx")`: the entry point `torch_dynamo_backends`.

    Operators without a lowering run in PyTorch, and so does a graph with values that MLX cannot
    hold; VLLM_METAL_FALLBACK=error refuses both with CompileError. Where gradients are wanted, the
    forward pass runs on MLX and the backward pass in PyTorch.
    """
    unknown = {name: value for name, value in options.items() if value}
    if unknown:
        raise ValueError(f'backend="mlx" has no options, and was given {unknown}')
    for tensor in example_inputs:
        if isinstance(tensor, torch.Tensor) and tensor.device.type != "cpu":
            raise ValueError(
                f'backend="mlx" takes tensors on the CPU, whose memory a Mac\'s GPU shares, and '
                f'was given one on {tensor.device}: move the model and its inputs with .to("cpu")'
            )
    names = [_input_name(node) for node in graph_module.graph.find_nodes(op="placeholder")]

    def compile_forward(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return _compile(module, inputs, names)

    compiled: Callable[..., Any] = aot_autograd(
        fw_compiler=compile_forward, inference_compiler=compile_forward, bw_compiler=_in_pytorch
    )(graph_module, example_inputs)
    return compiled


def _compile(
    module: fx.GraphModule, inputs: Sequence[Any], names: Sequence[str]
) -> Callable[..., Any]:
    graph = _graph_name()
    parameters = {
        position: names[position] if len(names) == len(inputs) else f"parameter.{position}"
        for position in _weight_positions(module)
    }
    refuse = envs.FALLBACK.value() == "error"
    try:
        converted = convert(module, parameters)
        if device() == "gpu" and torch.float64 in converted.dtypes:
            raise CompileError("float64, which MLX has on the CPU only (VLLM_MLX_DEVICE=cpu)")
        lowered = LoweredGraph(graph, converted, refuse_fallback=refuse)
    except (CompileError, ValueError) as error:
        if refuse:
            raise CompileError(f"{graph}: {error}") from error
        record_refusal(graph, str(error))
        return _in_pytorch(module, inputs)
    record(graph, lowered.report)

    def run(arguments: list[Any]) -> list[Any]:
        given = tuple(arguments)
        arguments.clear()
        return lowered(*given)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def _in_pytorch(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    def run(arguments: list[Any]) -> Any:
        given = tuple(arguments)
        arguments.clear()
        return module(*given)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def _weight_positions(module: fx.GraphModule) -> list[int]:
    """Arguments that are parameters or buffers, and that the graph does not change."""
    context = TracingContext.try_get()
    metadata = context.fw_metadata if context is not None else None
    if metadata is None:
        return []
    mutated = {index for index, info in enumerate(metadata.input_info) if info.mutates_data}
    return [index for index in metadata.static_input_indices if index not in mutated]


def _graph_name() -> str:
    identity = CompileContext.current_compile_id()
    return f"graph {identity}" if identity is not None else "graph"


def _input_name(node: fx.Node) -> str:
    """`model.layers.0.weight` for Dynamo's `L['self']._modules['model']...`."""
    argument = node.meta.get("grapharg")
    source = argument.source.name if argument is not None and argument.source else node.name
    source = source() if callable(source) else source
    path = re.sub(r"\._(modules|parameters|buffers)\['([^']*)'\]", r".\2", str(source))
    path = re.sub(r"\[(?:'([^']*)'|(\d+))\]", r".\1\2", path)
    return re.sub(r"^L\.(self\.|fn\.)?", "", path)
