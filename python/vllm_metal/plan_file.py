# SPDX-License-Identifier: Apache-2.0
"""Writes a plan as a file with all that running it takes but the weights.

`src/plan_file.rs` describes the container. Besides the plan it holds `recipe` (which slices of
which checkpoint tensors make up each parameter), `model` (what a generator has to know) and
`tensors/PATH` for what no checkpoint holds: rope tables, and parameters that vLLM computes.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import vllm
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoTokenizer
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from vllm_metal import checkpoint, layers, patches
from vllm_metal._native import core
from vllm_metal.lowered import Lowering, lower
from vllm_metal.mapped_weights import mapped_weights
from vllm_metal.memory import human
from vllm_metal.plan_cache import PlanCache
from vllm_metal.plan_cache.state import tensor_bytes
from vllm_metal.weight_trace import Unexplained, WeightTrace

MAX_STORED_BYTES = 2 << 30
"""All tensors in a plan file together: rope tables fit, a model's weights do not."""


@dataclass(frozen=True)
class Written:
    """What a plan file holds; `str()` is a line for people."""

    path: Path
    parameters: int
    sources: int
    stored: dict[str, int]
    """Bytes of the tensors in the file, by path."""
    sha256: str

    def __str__(self) -> str:
        size = human(sum(self.stored.values()))
        return (
            f"{self.path}: plan {self.sha256[:12]}, {self.parameters} parameters from "
            f"{self.sources} checkpoint tensors, {len(self.stored)} stored ({size})"
        )


def write_plan(vllm_config: VllmConfig, path: Path, cache: PlanCache | None = None) -> Written:
    """Loads the model as vLLM does, lowers it, and writes its plan file.

    Raises ValueError for a model without a safetensors checkpoint, and where more of it than fits a
    plan file is neither in the checkpoint nor a strided copy of it.
    """
    loader, folder = _loader(vllm_config)
    layers.register()
    patches.prepare(vllm_config.model_config)
    trace = WeightTrace()
    with ExitStack() as loading:
        tensors = checkpoint.check_directory(folder)
        loading.enter_context(mapped_weights())
        loading.enter_context(checkpoint.naming_bad_weights(loader, tensors))
        loading.enter_context(trace.watching())
        model = loader.load_model(vllm_config=vllm_config, model_config=vllm_config.model_config)
    patches.apply()
    lowering = lower(model, vllm_config, cache=cache)
    recipe, stored = _recipe(lowering, model, trace, folder)
    _check_size(stored)
    texts = {
        "recipe": json.dumps(recipe, separators=(",", ":")).encode(),
        "model": json.dumps(_facts(vllm_config, lowering)).encode(),
    }
    core.PlanFile.write(path, lowering.plan, texts, {f"tensors/{p}": t for p, t in stored.items()})
    sizes = {name: tensor.nbytes for name, tensor in stored.items()}
    counts = len(recipe["parameters"]), len(recipe["sources"])
    return Written(path, *counts, sizes, lowering.plan.sha256)


def _loader(vllm_config: VllmConfig) -> tuple[DefaultModelLoader, Path]:
    load_config = copy.copy(vllm_config.load_config)
    load_config.load_format = "auto"
    loader = get_model_loader(load_config)
    model_config = vllm_config.model_config
    needs = "a plan file records how vLLM loads a checkpoint in safetensors"
    if not isinstance(loader, DefaultModelLoader):
        raise ValueError(f"{model_config.model}: {needs}, and this one has a loader of its own")
    try:
        folder, _, is_safetensors, _ = loader._prepare_weights(
            model_config.model, None, model_config.revision, True, None
        )
    except RuntimeError as error:
        raise ValueError(f"{model_config.model}: {needs}: {error}") from None
    if not is_safetensors:
        raise ValueError(f"{model_config.model}: {needs}, and this one is in another format")
    return loader, Path(folder)


def _recipe(
    lowering: Lowering, model: nn.Module, trace: WeightTrace, folder: Path
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The recipe, checked bit for bit by putting every parameter together again, and the tensors
    that have none."""
    live: dict[str, torch.Tensor] = {
        **dict(model.named_parameters()),
        **dict(model.named_buffers()),
    }
    parameters: dict[str, Any] = {}
    stored: dict[str, torch.Tensor] = {}
    sources: dict[str, Any] = {}
    files = core.Checkpoint(folder)
    numbers = {name: number for number, name in enumerate(trace.names)}
    for path in tqdm(lowering.plan.parameters, desc="Checking weights", delay=1, leave=False):
        tensor = _tensor(lowering, live, path)
        try:
            pieces = trace.pieces(tensor)
        except Unexplained:
            stored[path] = tensor
            continue
        kind = _kind(tensor)
        used = {piece["source"] for piece in pieces if piece["source"] is not None}
        of_this = {name: _kind(trace.source(numbers[name])[1]) for name in used}
        entry = {path: {**kind, "pieces": pieces}}
        if used and _is_rebuilt({"sources": of_this, "parameters": entry}, path, tensor, files):
            parameters.update(entry)
            sources.update(of_this)
        else:
            stored[path] = tensor
    return {"sources": dict(sorted(sources.items())), "parameters": parameters}, stored


def _tensor(lowering: Lowering, live: dict[str, torch.Tensor], path: str) -> torch.Tensor:
    name = lowering.aliases.get(path, path)
    found = lowering.buffers.get(name, live.get(name))
    if found is None:
        raise ValueError(f"the model has no tensor {path}, which its plan reads")
    return found.detach()


def _is_rebuilt(recipe: dict[str, Any], path: str, tensor: torch.Tensor, files: Any) -> bool:
    try:
        built = core.Recipe(json.dumps(recipe).encode()).build(path, files)
    except ValueError:  # pieces that leave elements out, or types that are not converted
        return False
    return bool(built == tensor_bytes(tensor))


def _kind(tensor: torch.Tensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def _check_size(stored: dict[str, torch.Tensor]) -> None:
    total = sum(tensor.nbytes for tensor in stored.values())
    if total > MAX_STORED_BYTES:
        name, largest = max(stored.items(), key=lambda item: item[1].nbytes)
        raise ValueError(
            f"{human(total)} of this model are neither in its checkpoint nor strided copies of it "
            f"(the most is {name}, {human(largest.nbytes)}), and a plan file holds at most "
            f"{human(MAX_STORED_BYTES)}: serve it with `vllm serve` instead."
        )


def _facts(vllm_config: VllmConfig, lowering: Lowering) -> dict[str, Any]:
    model_config = vllm_config.model_config
    return {
        "architecture": lowering.report["architecture"],
        "vocab_size": model_config.get_vocab_size(),
        "max_model_len": model_config.max_model_len,
        "eos_token_ids": sorted(_eos_token_ids(model_config)),
        "kv_cache_dtype": str(model_config.dtype).removeprefix("torch."),
        "islands": [island["target"] for island in lowering.report["fallback"]],
        "producer": {"vllm": vllm.__version__, "torch": torch.__version__.split("+")[0]},
    }


def _eos_token_ids(model_config: ModelConfig) -> set[int]:
    """The ids that vLLM stops at: the tokenizer's and those of generation_config.json."""
    ids: set[int] = set()
    with _without_tokenizer_files():
        tokenizer = AutoTokenizer.from_pretrained(
            model_config.tokenizer,
            revision=model_config.tokenizer_revision,
            trust_remote_code=model_config.trust_remote_code,
        )
        if tokenizer.eos_token_id is not None:
            ids.add(tokenizer.eos_token_id)
    stated = model_config.try_get_generation_config().get("eos_token_id")
    if stated is None and not ids:
        stated = getattr(model_config.hf_text_config, "eos_token_id", None)
    return ids | set(stated if isinstance(stated, list) else [] if stated is None else [stated])


@contextmanager
def _without_tokenizer_files() -> Iterator[None]:
    """A checkpoint without a tokenizer is fine here: whoever generates text needs one anyway."""
    try:
        yield
    except (OSError, ValueError):
        return
