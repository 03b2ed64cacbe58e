# SPDX-License-Identifier: Apache-2.0
"""Python values as the document writes them (see ``document``)."""

import sys
from typing import Any, Protocol

import sympy
import torch

from vllm_metal.fx.graph import Node, TensorType, ValueType


class Sizes(Protocol):
    """Writes a graph's symbolic sizes as text; raises ``ValueError`` where that is impossible."""

    def text(self, expression: sympy.Basic) -> str:
        """An expression in the document's symbols."""

    def dimension(self, size: int | torch.SymInt) -> int | str:
        """A size as a number, or as an expression."""


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


def encode_argument(value: Any, sizes: Sizes, layers: frozenset[str]) -> Any:
    """ARG: an argument of a node; ``layers`` are the names that stand for a layer in a string."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, float):
        return encode_float(value)
    if isinstance(value, torch.SymInt):
        size = sizes.dimension(value)
        return size if isinstance(size, int) else {"expr": size}
    if isinstance(value, (torch.SymFloat, torch.SymBool)):
        return {"expr": sizes.text(value.node.expr)}
    if isinstance(value, (list, tuple)):
        return [encode_argument(item, sizes, layers) for item in value]
    if _is_layer_name(value):
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


def _is_layer_name(value: Any) -> bool:
    # Importing vLLM takes seconds, and where it is not imported nothing is of its types.
    module = sys.modules.get("vllm.utils.torch_utils")
    return module is not None and isinstance(value, module.LayerName)
