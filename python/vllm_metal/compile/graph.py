# SPDX-License-Identifier: Apache-2.0
"""A torch.fx graph lowered to a plan and run by MLX."""

import json
import time
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from vllm_metal._native import core
from vllm_metal.compile.convert import Argument, Constant, Converted, Size, Tensor
from vllm_metal.compile.device import runtime
from vllm_metal.compile.weights import fingerprint, plain, weights
from vllm_metal.fx import TensorType, document_bytes, graph_json
from vllm_metal.islands import run_island

GRAPH = "graph"
"""Name of the only graph in the plan."""


class LoweredGraph:
    """A graph's plan. Calling it with the graph's arguments gives the list of its outputs.

    ``report`` is the lowering's report with the time of each stage. ``document`` and ``plan`` are
    what was lowered and what it was lowered to.
    """

    def __init__(self, name: str, converted: Converted, *, refuse_fallback: bool) -> None:
        """Raises ValueError for what the lowering refuses."""
        start = time.perf_counter()
        self.document = _document(name, converted)
        seconds = time.perf_counter() - start
        self.plan = core.lower(self.document, {"refuse_fallback": refuse_fallback})
        self.report: dict[str, Any] = json.loads(self.plan.report_json())
        self.report["timings_ms"] = {"convert": seconds * 1e3, **self.report["timings_ms"]}
        self._outputs = converted.outputs
        self._constants = converted.constants
        self._parameters = converted.parameters
        self._sizes = converted.sizes
        read = set(self.plan.inputs(GRAPH))
        self._inputs = [item for item in converted.tensors if item.name in read]
        # One graph may serve several modules, each with weights of its own.
        self._models: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def __call__(self, *arguments: Any) -> list[Any]:
        model = self._load(arguments)
        sizes = self._sizes.bind(arguments)
        inputs = {item.name: plain(arguments[item.position]) for item in self._inputs}
        results = model.run(GRAPH, {**inputs, **sizes}, borrow=True)
        lazy = list(results) if isinstance(results, tuple) else [results]
        runtime().evaluate(lazy)
        outputs: list[Any] = []
        memory: set[int] = set()
        for output in self._outputs:
            match output:
                case Tensor():
                    outputs.append(_owned(torch.from_dlpack(lazy[output.index]), output, memory))
                case Argument(position):
                    outputs.append(arguments[position])
                case Size(expression):
                    outputs.append(self._sizes.value(expression, sizes))
                case Constant(value):
                    outputs.append(value)
        return outputs

    def _load(self, arguments: Sequence[Any]) -> Any:
        """The plan with the weights of this call, loaded again after a weight has changed."""
        given = [arguments[position] for position in self._parameters.values()]
        key = tuple([id(tensor) for tensor in given])
        identity = [fingerprint(tensor) for tensor in given]
        known = self._models.get(key)
        if known is not None and known[0] == identity:
            return known[1]
        arrays = {
            path: weights.upload(tensor)
            for path, tensor in zip(self._parameters, given, strict=True)
        }
        if known is None and given:
            weakref.finalize(given[0], self._models.pop, key, None)
        constants = {path: plain(tensor) for path, tensor in self._constants.items()}
        model = runtime().load(self.plan, {**constants, **arrays}, run_island)
        self._models[key] = (identity, model)
        return model


def _owned(tensor: torch.Tensor, output: Tensor, memory: set[int]) -> torch.Tensor:
    """The tensor in memory of its own, for a caller may write to it, and in PyTorch's layout."""
    if output.order is not None:
        moved = tensor.permute(output.order).contiguous()
        inverse = sorted(range(len(output.order)), key=output.order.__getitem__)
        return moved.permute(inverse)
    if output.shared or tensor.data_ptr() in memory:
        return tensor.clone()
    memory.add(tensor.data_ptr())
    return tensor


def _document(name: str, converted: Converted) -> bytes:
    kinds = [node.type for node in converted.nodes if node.op == "placeholder"]
    dtypes = [kind.dtype for kind in kinds if isinstance(kind, TensorType)]
    floating = (dtype for dtype in dtypes if dtype.is_floating_point)
    nodes, sizes = converted.nodes, converted.sizes
    graph = graph_json(GRAPH, {}, nodes, sizes)
    # Writing the nodes has named their symbols.
    graph["symbols"] = [{"name": symbol, "role": "size"} for symbol in sizes.symbols]
    return document_bytes(name, next(floating, torch.float32), {}, {}, [graph])
