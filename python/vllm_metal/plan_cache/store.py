# SPDX-License-Identifier: Apache-2.0
"""Entries of the plan cache.

There is one level, with the key of `plan_key`. Capture is what costs seconds, so a key over the
captured document would save little: the lowering of 80 layers takes milliseconds. A hit needs no
capture, no lowering and no rewriting, only the plan.

An entry `plans/KEY/entry.plan` is a plan file (`src/plan_file.rs`) with the plan, its report, the
captured document (for tools that show stages) and a manifest; `factors.json` beside it says what
the key was made of. Buffers such as rope tables are the live model's: they may be loaded from a
checkpoint, and the model has computed them anyway. Stored are only tensors that come into being
while a model is traced.
"""

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.logger import init_logger

from vllm_metal import envs
from vllm_metal._native import core
from vllm_metal.capture import Captured, IrOps
from vllm_metal.plan_cache.key import Key, plan_key

logger = init_logger("vllm.metal")

ENTRY, FACTORS = "entry.plan", "factors.json"
_MANIFEST, _REPORT, _DOCUMENT, _TENSORS = "manifest", "report", "document", "tensors/"


@dataclass(frozen=True)
class Entry:
    """A plan from the cache. ``buffers`` are tensors of the live model, and stored ones."""

    path: Path
    plan: Any
    report: dict[str, Any]
    buffers: dict[str, torch.Tensor]
    aliases: dict[str, str]
    layers: dict[str, Any]

    def document(self) -> bytes:
        """The captured document. Raises ValueError where it is damaged."""
        return bytes(core.PlanFile(self.path).text(_DOCUMENT))


class PlanCache:
    """The plans below a folder. Nothing here fails: what can't be read is a miss, what can't be
    written is said once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def configured() -> "PlanCache | None":
        """The cache that the environment asks for; None where it is turned off."""
        if envs.DISABLE_CACHE.value():
            return None
        return PlanCache(envs.CACHE_DIR.value() / "plans")

    def key(self, model: nn.Module, vllm_config: VllmConfig, ir_ops: IrOps) -> Key | None:
        """The model's key; None, said once, where a factor can't be read."""
        try:
            return plan_key(model, vllm_config, ir_ops)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            logger.warning("metal: plan cache: not used for this model: %s", error)
            return None

    def path(self, key: Key) -> Path:
        return self.folder / key.text / ENTRY

    def load(self, key: Key, model: nn.Module) -> Entry | None:
        """The entry of that key, with the tensors that it takes from ``model``."""
        path = self.path(key)
        try:
            if not path.exists():
                return None
            return _read(path, key, model)
        except (ValueError, OSError, KeyError, TypeError) as error:
            logger.warning("metal: plan cache: %s is built again: %s", path.parent, error)
            return None

    def store(
        self, key: Key, captured: Captured, plan: Any, report: dict[str, Any], model: nn.Module
    ) -> None:
        """Writes an entry in one step, so that another process reads all of it or nothing."""
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sources, tensors = _tensor_sources(captured, key, model)
            manifest = {
                "key": key.text,
                "aliases": captured.aliases,
                "layers": captured.layers,
                "buffers": sources,
            }
            texts = {
                _MANIFEST: json.dumps(manifest).encode(),
                _REPORT: json.dumps(report).encode(),
                _DOCUMENT: captured.document,
            }
            _write_text(path.parent / FACTORS, json.dumps(key.factors, indent=1))
            core.PlanFile.write(path, plan, texts, tensors)
        except (ValueError, OSError) as error:
            logger.warning(
                "metal: plan cache: can't write to %s (%s): this model is captured again next "
                "time; %s chooses another folder",
                self.folder,
                error,
                envs.CACHE_DIR.name,
            )


def _read(path: Path, key: Key, model: nn.Module) -> Entry:
    file = core.PlanFile(path)
    manifest = json.loads(file.text(_MANIFEST))
    if manifest["key"] != key.text:
        raise ValueError("it is the entry of another model")
    registered = dict(model.named_buffers())
    buffers: dict[str, torch.Tensor] = {}
    for name, place in manifest["buffers"].items():
        match place:
            case "model":
                buffers[name] = registered[name].detach()
            case "file":
                buffers[name] = _stored_tensor(file.tensor(_TENSORS + name))
            case _:
                buffers[name] = key.tensors[place["attribute"]].detach()
    report = json.loads(file.text(_REPORT))
    aliases, layers = manifest["aliases"], manifest["layers"]
    return Entry(path, file.plan(), report, buffers, aliases, layers)


def _stored_tensor(stored: Any) -> torch.Tensor:
    dtype = getattr(torch, stored.dtype)
    if 0 in stored.shape:
        return torch.empty(stored.shape, dtype=dtype)
    return torch.frombuffer(bytearray(stored.to_bytes()), dtype=dtype).view(stored.shape)


def _tensor_sources(
    captured: Captured, key: Key, model: nn.Module
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Where each buffer comes from on a hit, and the ones that the entry has to hold."""
    registered = dict(model.named_buffers())
    attributes = {_identity(tensor): path for path, tensor in key.tensors.items()}
    sources: dict[str, Any] = {}
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in captured.buffers.items():
        if name in registered:
            sources[name] = "model"
        elif tensor.numel() and _identity(tensor) in attributes:
            sources[name] = {"attribute": attributes[_identity(tensor)]}
        else:
            sources[name] = "file"
            stored[_TENSORS + name] = tensor
    return sources, stored


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """The same for tensors that are one piece of memory."""
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
