# SPDX-License-Identifier: Apache-2.0
"""The key of a plan in the cache: everything that can influence what a model is captured as.

The model itself has been constructed by the time its plan is looked up, so that the key holds what
the constructed modules hold instead of guessing which settings they were made from. In doubt a
factor is in: a needless one costs a capture, a missing one a wrong model.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import vllm.envs
from torch import nn
from vllm.config import VllmConfig

from vllm_metal import envs
from vllm_metal._native import core
from vllm_metal.capture.capture import IrOps
from vllm_metal.plan_cache.state import State

# Their versions are factors; their files are not looked at.
_VERSIONED_PACKAGES = frozenset({"torch", "builtins"}) | frozenset(sys.stdlib_module_names)

# Settings that no forward pass reads: names and places of files, memory, scheduling of requests,
# logging, counters, and what only one process has. Modules are part of the key by themselves.
_IGNORED_SETTINGS = frozenset({
    "instance_id", "load_config", "logging_config", "observability_config", "profiler_config",
    "shutdown_timeout", "structured_outputs_config", "watchdog_config",
    "model_config.model", "model_config.model_weights", "model_config.tokenizer",
    "model_config.tokenizer_mode", "model_config.tokenizer_revision", "model_config.seed",
    "model_config.served_model_name", "model_config.hf_token", "model_config.hf_config_path",
    "model_config.generation_config", "model_config.override_generation_config",
    "model_config.max_logprobs", "model_config.logprobs_mode", "model_config.skip_tokenizer_init",
    "model_config.enforce_eager", "model_config.allowed_local_media_path",
    "model_config.allowed_media_domains", "model_config.renderer_num_workers",
    "cache_config.gpu_memory_utilization", "cache_config.num_gpu_blocks",
    "cache_config.num_gpu_blocks_override", "cache_config.num_cpu_blocks",
    "cache_config.kv_cache_memory_bytes", "cache_config.kv_cache_size_tokens",
    "cache_config.kv_cache_max_concurrency", "cache_config.enable_prefix_caching",
    "cache_config.prefix_caching_hash_algo",
    "parallel_config.data_parallel_master_ip", "parallel_config.data_parallel_master_port",
    "parallel_config.data_parallel_rpc_port", "parallel_config._data_parallel_master_port_list",
    "parallel_config._coord_store_port", "parallel_config.master_addr",
    "parallel_config.master_port", "parallel_config._api_process_count",
    "parallel_config._api_process_rank",
    "compilation_config.static_forward_context", "compilation_config.traced_files",
    "compilation_config.enabled_custom_ops", "compilation_config.disabled_custom_ops",
    "compilation_config.compilation_time", "compilation_config.encoder_compilation_time",
    "compilation_config.cache_dir", "compilation_config.local_cache_dir",
    "compilation_config.debug_dump_path",
})  # fmt: skip


@dataclass(frozen=True)
class Key:
    """``text`` names the entry; ``factors`` are what it is the hash of; ``tensors`` are the model's
    tensors that are neither parameters nor registered buffers, by where the model holds them."""

    text: str
    factors: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def plan_key(model: nn.Module, vllm_config: VllmConfig, ir_ops: IrOps) -> Key:
    """The key of a constructed model, with or without its weights: their values are no factor."""
    packages = _packages(model)
    # The settings first: where a module holds them too, they count by their place here.
    state = State(packages, _IGNORED_SETTINGS)
    config = state.of(vllm_config)
    modules = _text(state.of(model))
    factors = {
        "versions": _versions(),
        "lowering": core.LOWERING_SHA256,
        "capture": _tree_digest(Path(__file__).parent.parent),
        "options": {"ir_ops": ir_ops, envs.FALLBACK.name: envs.FALLBACK.value()},
        "environment": _environment(),
        "torch": {"default_dtype": str(torch.get_default_dtype())},
        "config": config,
        "modules": {"sha256": _sha256(modules.encode()), "count": sum(1 for _ in model.modules())},
        "sources": _sources(model),
        "packages": {package: _listing_digest(package) for package in sorted(packages)},
    }
    return Key(_sha256(_text(factors).encode()), factors, state.tensors)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "mlx": core.MLX_VERSION}
    for package in ("vllm-metal", "vllm", "torch", "transformers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a bare checkout
            versions[package] = ""
    return versions


def _environment() -> dict[str, Any]:
    """vLLM's variables, without those that it knows to be of no influence and without ours."""
    ours = {variable.name for variable in envs.VARIABLES}
    factors = vllm.envs.compile_factors()
    return {name: repr(value) for name, value in sorted(factors.items()) if name not in ours}


def _classes(model: nn.Module) -> Iterator[type]:
    """Classes of all modules and of the objects that they delegate to, with their bases."""
    for module in model.modules():
        yield from type(module).__mro__
        for item in vars(module).values():
            if hasattr(item, "__dict__") and not isinstance(item, (type, torch.Tensor)):
                yield from type(item).__mro__


def _packages(model: nn.Module) -> frozenset[str]:
    """Top-level packages that the model's code is in."""
    names = {kind.__module__.split(".")[0] for kind in set(_classes(model))}
    return frozenset(names | {"vllm"}) - _VERSIONED_PACKAGES


def _sources(model: nn.Module) -> dict[str, str]:
    """Hash of each file that a class of the model is written in, and of its Python neighbours where
    it belongs to no installed package (code that came with the checkpoint)."""
    names = {kind.__module__ for kind in set(_classes(model))}
    files = set()
    for name in names:
        file = getattr(sys.modules.get(name), "__file__", None)
        if name.split(".")[0] not in _VERSIONED_PACKAGES and file:
            files.add(Path(file))
            if name.split(".")[0] == "transformers_modules":
                files.update(Path(file).parent.glob("*.py"))
    return {str(file): _sha256(file.read_bytes()) for file in sorted(files) if file.exists()}


def _tree_digest(folder: Path) -> str:
    """Hash of all Python files below a folder, by content."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _listing_digest(package: str) -> str:
    """Hash of name, size and time of every Python file of a package.

    A model calls functions all over its package. Thousands of files are not read for that: the few
    that hold its classes are part of the key by content.
    """
    file = getattr(sys.modules.get(package), "__file__", None)
    if file is None:
        return ""
    is_package = Path(file).name == "__init__.py"
    entries = _python_files(os.path.dirname(file)) if is_package else iter([(file, os.stat(file))])
    listing = sorted((path, stat.st_size, stat.st_mtime_ns) for path, stat in entries)
    return _sha256(repr(listing).encode())


def _python_files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _python_files(entry.path)
            elif entry.name.endswith(".py"):
                yield entry.path, entry.stat()
