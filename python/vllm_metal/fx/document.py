# SPDX-License-Identifier: Apache-2.0
"""Writes captured graphs as an FX document: versioned JSON, the input of the lowering.

The same graphs give the same bytes: nodes stand in execution order, names depend on nothing but the
graph, keys are written in one order.
"""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from vllm_metal.fx.encode import Sizes, encode_argument, encode_dtype, encode_type
from vllm_metal.fx.graph import GETITEM, Node

FORMAT = "vllm-metal/fx"
VERSION = 1


def document_bytes(
    architecture: str,
    dtype: torch.dtype,
    layers: dict[str, Any],
    aliases: dict[str, str],
    graphs: list[dict[str, Any]],
) -> bytes:
    """The whole document, UTF-8 JSON."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": architecture,
        "dtype": encode_dtype(dtype),
        "producer": {"torch": torch.__version__.split("+")[0], "vllm": _vllm_version()},
        "layers": layers,
        "aliases": aliases,
        "graphs": graphs,
    }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def graph_json(
    name: str,
    symbols: Mapping[str, str],
    nodes: list[Node],
    sizes: Sizes,
    layers: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """One graph; ``symbols`` maps the name of each to its role: what it counts."""
    return {
        "name": name,
        "symbols": [{"name": symbol, "role": role} for symbol, role in symbols.items()],
        "nodes": [_node_json(node, sizes, layers) for node in nodes],
    }


def _vllm_version() -> str:
    try:
        return version("vllm")
    except PackageNotFoundError:
        return ""


def _node_json(node: Node, sizes: Sizes, layers: frozenset[str]) -> dict[str, Any]:
    if node.op == "placeholder":
        path = {"path": node.path} if node.path else {}
        value = encode_type(node.type)
        return {"name": node.name, "op": node.op, "role": node.role, **path, "value": value}
    args = encode_argument(node.args, sizes, layers)
    if node.op == "output":
        return {"name": node.name, "op": node.op, "args": args}
    return {
        "name": node.name,
        "op": node.op,
        "target": GETITEM if node.target == GETITEM else str(node.target),
        "args": args,
        "kwargs": {key: encode_argument(item, sizes, layers) for key, item in node.kwargs.items()},
        **_mutates(node),
        "value": encode_type(node.type),
        "module": node.module,
        "source": node.source,
    }


def _mutates(node: Node) -> dict[str, Any]:
    """Which arguments the call writes to, by position or keyword; nothing where there are none."""
    if node.target == GETITEM:
        return {}
    written = [
        index if index < len(node.args) else {"str": argument.name}
        for index, argument in enumerate(node.target._schema.arguments)
        if argument.alias_info is not None
        and argument.alias_info.is_write
        and (index < len(node.args) or argument.name in node.kwargs)
    ]
    return {"mutates": written} if written else {}
