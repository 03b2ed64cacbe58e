# SPDX-License-Identifier: Apache-2.0
"""Lowers one callable for given arguments, without Dynamo."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from vllm_metal import envs
from vllm_metal.compile.convert import convert
from vllm_metal.compile.graph import LoweredGraph


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

    Tensors among the arguments (in lists, tuples and dicts, too) become inputs; everything else, a
    module's weights included, is a constant of the graph. Without gradients. `dynamic` makes all
    sizes above 1 symbolic.
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
            flat,
            decomposition_table={},
            tracing_mode="symbolic" if dynamic else "fake",
            _allow_non_fake_inputs=True,  # a module's weights
        )(*tensors)
    if refuse_fallback is None:
        refuse_fallback = envs.FALLBACK.value() == "error"
    name = getattr(function, "__name__", type(function).__name__)
    graph = LoweredGraph(name, convert(graph_module, {}), refuse_fallback=refuse_fallback)
    return LoweredFunction(graph, results[-1])
