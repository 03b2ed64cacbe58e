# SPDX-License-Identifier: Apache-2.0
"""Islands: FX nodes without a lowering, run in PyTorch on the CPU."""

import json
from typing import Any

import torch


def run_island(target: str, arguments: str, operands: list[Any]) -> list[torch.Tensor]:
    """Runs the operator `target` (such as `aten.foo.default`) for the runtime.

    `arguments` is the FX call as the lowering wrote it: JSON with `args` and `kwargs`, in which
    `{"operand": i}` stands for the i-th DLPack capsule of `operands`. Returns the tensors of its
    result in order.
    """
    call = json.loads(arguments)
    tensors = [torch.from_dlpack(operand) for operand in operands]
    args = [_decode(argument, tensors) for argument in call["args"]]
    kwargs = {name: _decode(argument, tensors) for name, argument in call["kwargs"].items()}
    namespace, name, overload = target.split(".")
    operator = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    # The runtime's thread has its own autograd mode.
    with torch.no_grad():
        return list(_tensors(operator(*args, **kwargs)))


def _decode(argument: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(argument, list):
        return [_decode(item, tensors) for item in argument]
    if not isinstance(argument, dict):
        return argument
    ((kind, content),) = argument.items()
    match kind:
        case "operand":
            return tensors[content]
        case "float":
            return float(content)
        case "dtype" | "memory_format" | "layout":
            return getattr(torch, content)
        case "device":
            return torch.device(content)
        case "layer":
            from vllm.utils.torch_utils import LayerName

            return LayerName(content)
        case "str":
            return content
    raise ValueError(f"an argument of kind {kind} can't be handed to PyTorch: {content}")


def _tensors(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        yield result.contiguous()
    elif isinstance(result, (tuple, list)):
        for item in result:
            yield from _tensors(item)
