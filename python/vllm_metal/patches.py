# SPDX-License-Identifier: Apache-2.0
"""Functions of vLLM that have only CUDA or Triton forms, replaced by PyTorch ones.

A replacement states what the layer computes, in operators that capture can follow. It is also what
`VLLM_METAL_USE_MLX=0` runs.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])

_LAYERS = "vllm.model_executor.layers"

REPLACEMENTS = {
    f"{_LAYERS}.attention.mla_attention": "vllm_metal.latent_attention",
    f"{_LAYERS}.mamba.mamba_mixer": "vllm_metal.recurrent.mamba",
    f"{_LAYERS}.mamba.mamba_mixer2": "vllm_metal.recurrent.mamba2",
    f"{_LAYERS}.mamba.short_conv": "vllm_metal.recurrent.short_conv",
    f"{_LAYERS}.mamba.gdn.qwen_gdn_linear_attn": "vllm_metal.recurrent.qwen_gated_delta",
    f"{_LAYERS}.mamba.gdn.kimi_gdn_linear_attn": "vllm_metal.recurrent.kimi_delta",
    f"{_LAYERS}.mamba.gdn.olmo_gdn_linear_attn": "vllm_metal.recurrent.olmo_gated_delta",
    f"{_LAYERS}.mamba.linear.minimax_linear_attn": "vllm_metal.recurrent.minimax_lightning",
    f"{_LAYERS}.mamba.linear.bailing_linear_attn": "vllm_metal.recurrent.bailing_lightning",
    "vllm.triton_utils": "vllm_metal.triton_placeholder",
    "vllm.v1.worker.mamba_utils": "vllm_metal.recurrent.alignment",
}
"""vLLM's modules, and ours that replace methods of them."""


def replaces(owner: Any, method: str) -> Callable[[_F], _F]:
    """Puts a function in the place of `owner.method`.

    Raises AttributeError where vLLM has no such method: it was renamed, and the replacement void.
    """
    getattr(owner, method)

    def replace(function: _F) -> _F:
        setattr(owner, method, function)
        return function

    return replace


def provides(owner: Any, name: str) -> Callable[[_F], _F]:
    """Gives `owner` a function that it lacks."""

    def provide(function: _F) -> _F:
        if not hasattr(owner, name):
            setattr(owner, name, function)
        return function

    return provide


def apply() -> None:
    """Replace functions of the modules that are imported by now. Before a model is built, for what
    it needs then; and after, when the modules of its layers are imported."""
    for module, replacement in REPLACEMENTS.items():
        if module in sys.modules:
            importlib.import_module(replacement)
