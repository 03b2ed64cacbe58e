# SPDX-License-Identifier: Apache-2.0
"""Python values as the document writes them (see ``document``)."""

from typing import Any

import torch
from vllm.utils.torch_utils import LayerName

from vllm_metal.capture.graph import Node, TensorType, ValueType
from vllm_metal.capture.symbols import SymbolNames


def encode_float(value: float) -> dict[str, Any]:
    """A float without rounding: Python's repr reads back to the same bits."""
    return {"float": repr(value)}


def encode_dtype(dtype: torch.dtype) -> str:
    """torch's name of the dtype without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def encode_type(kind: ValueType) -> dict[str, Any] | None:
    """VALUE: dtype and shape of what a node computes."""
    if kind is None:
        return None
    if isinstance(kind, TensorType):
        return {"dtype": encode_dtype(kind.dtype), "shape": list(kind.shape)}
    return {"tuple": [encode_type(item) for item in kind]}


def encode_argument(value: Any, names: SymbolNames, layers: frozenset[str]) -> Any:
    """ARG: an argument of a node; ``layers`` are the names that stand for a layer in a string."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, float):
        return encode_float(value)
    if isinstance(value, torch.SymInt):
        size = names.dimension(value)
        return size if isinstance(size, int) else {"expr": size}
    if isinstance(value, (torch.SymFloat, torch.SymBool)):
        return {"expr": names.text(value.node.expr)}
    if isinstance(value, (list, tuple)):
        return [encode_argument(item, names, layers) for item in value]
    if isinstance(value, LayerName):
        return {"layer": value.value}
    if isinstance(value, str):
        return {"layer": value} if value in layers else {"str": value}
    if isinstance(value, torch.dtype):
        return {"dtype": encode_dtype(value)}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if isinstance(value, torch.memory_format):
        return {"memory_format": str(value).removeprefix("torch.")}
    if isinstance(value, torch.layout):
        return {"layout": str(value).removeprefix("torch.")}
    return {"other": repr(value)}
