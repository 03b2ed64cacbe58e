# SPDX-License-Identifier: Apache-2.0
"""The captured graph: a list of nodes in execution order."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch


@dataclass(frozen=True, eq=False)
class TensorType:
    """What the graph knows of a tensor. Equal types are one object (see ``Trace``).

    ``shape`` has integers and expressions in the graph's symbol; ``meta`` is a tensor without data
    that also has the strides.
    """

    dtype: torch.dtype
    shape: tuple[int | str, ...]
    device: torch.device
    meta: torch.Tensor


ValueType = TensorType | tuple["ValueType", ...] | None


@dataclass(eq=False)
class Node:
    """One input, weight, operator call or the output of a graph.

    ``args`` and ``kwargs`` are the operator's, with nodes in the place of tensors and torch's
    symbolic numbers as they came. ``role`` and ``path`` are those of a placeholder; ``module`` and
    ``source`` (file:line) say where in the model a call stands.
    """

    name: str
    op: Literal["placeholder", "call", "output"]
    type: ValueType = None
    target: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    role: Literal["input", "parameter", "buffer", ""] = ""
    path: str = ""
    module: str = ""
    source: str = ""

    def arguments(self) -> Iterator[Any]:
        """Every leaf of ``args`` and ``kwargs``."""
        yield from _leaves(self.args)
        yield from _leaves(tuple(self.kwargs.values()))


GETITEM = "getitem"
"""Target of a node that takes one value out of an operator's tuple: args are (node, index)."""

_PURE_NAMESPACES = frozenset({"aten", "prims", "vllm_ir"})


def live_nodes(nodes: list[Node]) -> list[Node]:
    """The nodes, weights included, that the output or an effect needs."""
    needed: set[Node] = set()
    for node in reversed(nodes):
        if node in needed or _is_root(node):
            needed.add(node)
            needed.update(leaf for leaf in node.arguments() if isinstance(leaf, Node))
    return [node for node in nodes if node in needed]


def _is_root(node: Node) -> bool:
    if node.op == "output" or node.role == "input":
        return True
    if node.op == "placeholder" or node.target == GETITEM:
        return False
    # vLLM's operators may write a cache without saying so in their schema.
    return node.target._schema.is_mutable or node.target.namespace not in _PURE_NAMESPACES


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        yield from _leaves(tuple(value.values()))
    else:
        yield value
