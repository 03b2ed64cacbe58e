# SPDX-License-Identifier: Apache-2.0
"""A torch.fx graph lowered to a plan and run by MLX."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from vllm_metal import envs
from vllm_metal._native import core
from vllm_metal.compile.convert import Constant, Converted, Tensor, convert
from vllm_metal.compile.device import runtime
from vllm_metal.fx import TensorType, document_bytes, graph_json
from vllm_metal.islands import run_island

GRAPH = "graph"
"""Name of the only graph in the plan."""


class LoweredGraph:
    """A graph's plan. Calling it with tensors (and whole numbers, where the graph takes them) gives
    the list of its outputs.

    ``report`` is the lowering's report with the time of each stage. ``document`` and ``plan`` are
    what was lowered and what it was lowered to.
    """

    def __init__(self, name: str, converted: Converted, *, refuse_fallback: bool) -> None:
        start = time.perf_counter()
        self._converted = converted
        self.document = _document(name, converted)
        seconds = time.perf_counter() - start
        self.plan = core.lower(self.document, {"refuse_fallback": refuse_fallback})
        self.report: dict[str, Any] = json.loads(self.plan.report_json())
        self.report["timings_ms"] = {"convert": seconds * 1e3, **self.report["timings_ms"]}
        self._model: Any = None

    def __call__(self, *arguments: Any) -> list[Any]:
        if self._model is None:
            self._model = runtime().load(self.plan, self._weights(arguments), run_island)
        inputs = {item.name: _plain(arguments[item.position]) for item in self._converted.tensors}
        results = self._model.run(GRAPH, inputs)
        tensors = results if isinstance(results, tuple) else (results,)
        return [
            torch.from_dlpack(tensors[output.index]) if isinstance(output, Tensor) else output.value
            for output in self._converted.outputs
            if isinstance(output, (Tensor, Constant))
        ]

    def _weights(self, arguments: Sequence[Any]) -> dict[str, torch.Tensor]:
        parameters = self._converted.parameters
        given = {path: _plain(arguments[position]) for path, position in parameters.items()}
        return {**self._converted.constants, **given}


class LoweredFunction:
    """A function lowered for given arguments (see `lower_function`)."""

    def __init__(self, graph: LoweredGraph, structure: pytree.TreeSpec) -> None:
        self.graph = graph
        self._structure = structure

    @property
    def report(self) -> dict[str, Any]:
        """The lowering's report: `fallback` lists the islands."""
        return self.graph.report

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return pytree.tree_unflatten(self.graph(*tensors), self._structure)


def lower_function(
    function: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: bool = False,
    refuse_fallback: bool | None = None,
) -> LoweredFunction:
    """Lower `function(*args, **kwargs)`; calling the result with arguments of the same structure
    runs it on MLX and gives what the function gives.

    Tensors among the arguments (in lists, tuples and dicts, too) become inputs; everything else is
    a constant of the graph. Without gradients. `dynamic` makes all sizes above 1 symbolic.
    `refuse_fallback` raises ValueError for an operator without a lowering; it defaults to
    VLLM_METAL_FALLBACK. Raises CompileError for what no document can hold. Mutations of the
    arguments are not carried out: use `torch.compile(function, backend="mlx")` for the whole of
    PyTorch's semantics.
    """
    leaves, structure = pytree.tree_flatten((tuple(args), dict(kwargs or {})))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    results: list[pytree.TreeSpec] = []

    def flat(*inputs: torch.Tensor) -> list[Any]:
        given = iter(inputs)
        whole = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        call_args, call_kwargs = pytree.tree_unflatten(whole, structure)
        outputs, spec = pytree.tree_flatten(function(*call_args, **call_kwargs))
        results.append(spec)
        return outputs

    with torch.no_grad():
        graph_module: fx.GraphModule = make_fx(
            flat, decomposition_table={}, tracing_mode="symbolic" if dynamic else "fake"
        )(*tensors)
    if refuse_fallback is None:
        refuse_fallback = envs.FALLBACK.value() == "error"
    name = getattr(function, "__name__", type(function).__name__)
    graph = LoweredGraph(name, convert(graph_module, {}), refuse_fallback=refuse_fallback)
    return LoweredFunction(graph, results[-1])


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's elements, as DLPack can hand them over."""
    return tensor.detach().resolve_neg()


def _document(name: str, converted: Converted) -> bytes:
    kinds = [node.type for node in converted.nodes if node.op == "placeholder"]
    dtypes = [kind.dtype for kind in kinds if isinstance(kind, TensorType)]
    floating = (dtype for dtype in dtypes if dtype.is_floating_point)
    nodes = converted.nodes
    graph = graph_json(GRAPH, {}, nodes, converted.sizes)
    # Symbols are named as the nodes are written.
    graph["symbols"] = [
        {"name": key, "role": role} for key, role in converted.sizes.symbols.items()
    ]
    return document_bytes(name, next(floating, torch.float32), {}, {}, [graph])
