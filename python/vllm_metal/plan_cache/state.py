# SPDX-License-Identifier: Apache-2.0
"""What a Python object graph says, as plain values: the part of a cache key that is not a file.

A forward pass decides by what its modules hold. Numbers, strings and small tensors are taken by
value, functions and classes by name (their sources are part of the key too), tensors by type.
"""

import dataclasses
import enum
import functools
import hashlib
import types
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

# Contents of tensors up to this size are part of the state: a forward pass, or the description of
# an attention layer, may turn them into numbers of the graph.
_MAX_VALUES = 65536

_PLAIN = (bool, int, float, str, bytes, complex, type(None))
_NAMES = (torch.dtype, torch.device, torch.layout, torch.memory_format, enum.Enum)


class State:
    """Plain values of objects, each object once. ``tensors`` are those met that are neither
    parameters nor registered buffers, by where they were found.

    Objects of the Python packages ``packages`` and data classes are looked into; others count by
    their class, because what a lock or a logger holds differs from process to process.
    """

    def __init__(self, packages: frozenset[str], ignored: frozenset[str] = frozenset()) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._packages = packages
        self._ignored = ignored
        self._seen: dict[int, int] = {}
        self._keep_alive: list[Any] = []

    def of(self, value: Any, path: str = "") -> Any:
        """``value`` as nested lists and dictionaries of plain values; ``path`` says where it is."""
        if isinstance(value, enum.Enum):
            return f"{type(value).__qualname__}.{value.name}"
        if isinstance(value, _PLAIN):
            return repr(value) if isinstance(value, (float, bytes, complex)) else value
        if isinstance(value, _NAMES):
            return str(value)
        if isinstance(value, (type, types.ModuleType)):
            return _name(value)
        if id(value) in self._seen:
            return {"again": self._seen[id(value)]}
        self._seen[id(value)] = len(self._seen)
        self._keep_alive.append(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        if isinstance(value, (list, tuple)):
            return [self.of(item, f"{path}.{i}") for i, item in enumerate(value)]
        if isinstance(value, (set, frozenset)):
            # Whatever order the set has in this process: objects are numbered as they come.
            return sorted(repr(self.of(item)) for item in sorted(value, key=repr))
        if isinstance(value, dict):
            return self._fields(value, path)
        if isinstance(value, PretrainedConfig):
            # Where it was read from says nothing about the model.
            return self._fields({**value.to_dict(), "_name_or_path": ""}, path)
        return self._object(value, path)

    def _object(self, value: Any, path: str) -> Any:
        if isinstance(value, functools.partial):
            return [self.of(value.func, path), self.of(value.args, path), self.of(value.keywords)]
        if isinstance(value, types.MethodType):
            return [_name(value.__func__), type(value.__self__).__qualname__]
        if isinstance(value, types.FunctionType):
            cells = [self._cell(cell, path) for cell in value.__closure__ or ()]
            return [_name(value), *cells]
        kind = type(value)
        known = kind.__module__.split(".")[0] in self._packages or dataclasses.is_dataclass(value)
        if isinstance(value, nn.Module):
            return {"class": _name(kind), **self._module(value, path)}
        if not known or not hasattr(value, "__dict__"):
            return {"class": _name(kind)}
        return {"class": _name(kind), **self._fields(vars(value), path)}

    def _fields(self, fields: dict[Any, Any], path: str) -> dict[str, Any]:
        found = {}
        for name, item in fields.items():
            place = f"{path}.{name}" if path else str(name)
            if place not in self._ignored:
                found[str(name)] = self.of(item, place)
        return found

    def _module(self, module: nn.Module, path: str) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, item in vars(module).items():
            place = f"{path}.{name}" if path else name
            if name in ("_parameters", "_buffers"):
                fields[name] = {key: _described(tensor) for key, tensor in item.items()}
            elif name == "_modules":
                fields[name] = {
                    key: self.of(child, f"{path}.{key}" if path else key)
                    for key, child in item.items()
                }
            elif not (name.startswith("_") and isinstance(item, dict) and not item):  # hooks
                fields[name] = self.of(item, place)
        return fields

    def _cell(self, cell: Any, path: str) -> Any:
        try:
            return self.of(cell.cell_contents, path)
        except ValueError:  # not filled yet
            return None

    def _tensor(self, value: torch.Tensor, path: str) -> Any:
        self.tensors[path] = value
        described = _described(value)
        if value.device.type != "cpu" or value.numel() > _MAX_VALUES:
            return described
        return [described, hashlib.sha256(tensor_bytes(value)).hexdigest()]


def tensor_bytes(value: torch.Tensor) -> bytes:
    """The elements of a CPU tensor, row-major."""
    flat = value.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _described(value: torch.Tensor | None) -> Any:
    if value is None:
        return None
    kind = type(value)
    # A tied parameter is one object under two names: the graph knows it by the first.
    return [_name(kind), str(value.dtype), list(value.shape), list(value.stride())]


def _name(value: Any) -> str:
    module = getattr(value, "__module__", "")
    return f"{module}.{getattr(value, '__qualname__', getattr(value, '__name__', '?'))}"
