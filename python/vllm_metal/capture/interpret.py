# SPDX-License-Identifier: Apache-2.0
"""Runs an FX document with PyTorch: the oracle for what the lowering makes of it."""

import json
from collections.abc import Mapping
from typing import Any

import sympy
import torch
from vllm.utils.torch_utils import LayerName

from vllm_metal.fx import FORMAT, GETITEM, VERSION


class Interpreter:
    """Executes the graphs of a document on real tensors.

    ``tensors`` holds parameters and buffers by path; a tied parameter may stand under any of its
    paths. vLLM's own operators run as they are, so attention needs vLLM's forward context around
    ``run`` (see ``prefill``) and the layers of a constructed model. Raises ``ValueError`` for
    another document format.
    """

    def __init__(self, document: bytes, tensors: Mapping[str, torch.Tensor]) -> None:
        content = json.loads(document)
        if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
            raise ValueError(
                f"the document is {content.get('format')} version {content.get('version')}; "
                f"this build reads {FORMAT} version {VERSION}"
            )
        self._graphs = {graph["name"]: graph for graph in content["graphs"]}
        self._tensors = dict(tensors)
        for alias, path in content["aliases"].items():
            if path not in self._tensors and alias in self._tensors:
                self._tensors[path] = self._tensors[alias]

    def run(self, graph: str, **inputs: torch.Tensor) -> list[torch.Tensor]:
        """The outputs of a graph; its symbol takes its value from the first input that has it."""
        values: dict[str, Any] = {}
        symbols: dict[str, int] = {}
        for node in self._graphs[graph]["nodes"]:
            if node["op"] == "output":
                return [values[item["node"]] for item in node["args"]]
            if node["op"] == "placeholder":
                values[node["name"]] = self._placeholder(node, inputs, symbols)
                continue
            scope = (values, symbols)
            args = _decode(node["args"], *scope)
            kwargs = {name: _decode(item, *scope) for name, item in node["kwargs"].items()}
            if node["target"] == GETITEM:
                values[node["name"]] = args[0][args[1]]
            else:
                values[node["name"]] = _operator(node["target"])(*args, **kwargs)
        raise ValueError(f"graph {graph} has no output node")

    def _placeholder(
        self, node: dict[str, Any], inputs: Mapping[str, torch.Tensor], symbols: dict[str, int]
    ) -> torch.Tensor:
        if node["role"] != "input":
            return self._tensors[node["path"]]
        value = inputs[node["name"]]
        for dimension, size in zip(node["value"]["shape"], value.shape, strict=True):
            if isinstance(dimension, str) and dimension.isidentifier():
                symbols.setdefault(dimension, size)
            if _size(dimension, symbols) != size:
                raise ValueError(
                    f"{node['name']} has shape {list(value.shape)}, expected "
                    f"{node['value']['shape']} with {symbols}"
                )
        return value


def _decode(value: Any, values: Mapping[str, Any], symbols: Mapping[str, int]) -> Any:
    if isinstance(value, list):
        return [_decode(item, values, symbols) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "node":
            return values[content]
        case "float":
            return float(content)
        case "expr":
            return _size(content, symbols)
        case "dtype" | "memory_format" | "layout":
            return getattr(torch, content)
        case "device":
            return torch.device(content)
        case "layer":
            return LayerName(content)
        case "str":
            return content
    raise ValueError(f"an argument of kind {kind} can't be executed: {content}")


def _size(dimension: int | str, symbols: Mapping[str, int]) -> Any:
    if isinstance(dimension, int):
        return dimension
    numbers = {name: sympy.Integer(number) for name, number in symbols.items()}
    result = sympy.sympify(dimension, locals=numbers)
    return int(result) if result.is_Integer else float(result)


def _operator(target: str) -> Any:
    namespace, name, overload = target.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)
