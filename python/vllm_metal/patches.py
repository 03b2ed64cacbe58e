# SPDX-License-Identifier: Apache-2.0
"""Functions of vLLM that have only CUDA or Triton forms, replaced by PyTorch ones.

A replacement states what the layer computes, in operators that capture can follow. It is also what
`VLLM_METAL_USE_MLX=0` runs.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])

_LAYERS = "vllm.model_executor.layers"
_FLA = "vllm.third_party.flash_linear_attention.ops"

REPLACEMENTS = {
    f"{_LAYERS}.attention.mla_attention": "vllm_metal.latent_attention",
    f"{_LAYERS}.quantization.utils.fp8_utils": "vllm_metal.fused.group_scales",
    f"{_LAYERS}.sparse_attn_indexer": "vllm_metal.sparse_indexer",
    f"{_LAYERS}.fused_moe.router.zero_expert_router": "vllm_metal.layers.zero_experts",
    f"{_LAYERS}.mamba.mamba_mixer": "vllm_metal.recurrent.mamba",
    f"{_LAYERS}.mamba.mamba_mixer2": "vllm_metal.recurrent.mamba2",
    f"{_LAYERS}.mamba.short_conv": "vllm_metal.recurrent.short_conv",
    f"{_LAYERS}.mamba.gdn.qwen_gdn_linear_attn": "vllm_metal.recurrent.qwen_gated_delta",
    f"{_LAYERS}.mamba.gdn.kimi_gdn_linear_attn": "vllm_metal.recurrent.kimi_delta",
    f"{_LAYERS}.mamba.gdn.olmo_gdn_linear_attn": "vllm_metal.recurrent.olmo_gated_delta",
    f"{_LAYERS}.mamba.linear.minimax_linear_attn": "vllm_metal.recurrent.minimax_lightning",
    f"{_LAYERS}.mamba.linear.bailing_linear_attn": "vllm_metal.recurrent.bailing_lightning",
    f"{_FLA}.layernorm_guard": "vllm_metal.fused.group_norm",
    f"{_FLA}.kda": "vllm_metal.fused.delta_gate",
    "vllm.model_executor.models.bailing_moe_v3": "vllm_metal.recurrent.bailing_delta",
    "vllm.model_executor.models.k2_horizon": "vllm_metal.fused.expert_values",
    "vllm.model_executor.models.transformers.moe": "vllm_metal.layers.transformers_experts",
    "vllm.models.beam.nvidia.activation": "vllm_metal.fused.activation",
    "vllm.models.beam.nvidia.attention_ops": "vllm_metal.fused.attention_inputs",
    "vllm.models.beam.nvidia.layernorm": "vllm_metal.fused.residual_norm",
    "vllm.models.flint.model": "vllm_metal.fused.sink_attention",
    "vllm.models.kimi_k3.nvidia.model": "vllm_metal.fused.joint_latent_attention",
    "vllm.models.kimi_k3.nvidia.ops.attn_res": "vllm_metal.fused.attention_residual",
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


def replaces_function(module: ModuleType, name: str) -> Callable[[_F], _F]:
    """Puts a function in the place of `module.name`, and of what other modules imported from there.

    Raises AttributeError where vLLM has no such function.
    """
    original = getattr(module, name)

    def replace(function: _F) -> _F:
        for holder in list(sys.modules.values()):
            # Their dictionaries: asking some modules for an attribute imports more.
            names = vars(holder) if isinstance(holder, ModuleType) else {}
            for own in [own for own, value in names.items() if value is original]:
                setattr(holder, own, function)
        return function

    return replace


def provides(owner: Any, name: str) -> Callable[[_F], _F]:
    """Gives `owner` a function that it lacks."""

    def provide(function: _F) -> _F:
        if not hasattr(owner, name):
            setattr(owner, name, function)
        return function

    return provide


def prepare(model_config: Any) -> None:
    """Before a model is built: its module and those of its layers are imported and replaced, so
    that what they keep a reference to is ours."""
    from vllm.model_executor.model_loader.utils import get_model_architecture

    apply()  # Triton's placeholder comes before the modules that ask it for more than it has
    get_model_architecture(model_config)
    apply()


def apply() -> None:
    """Replace functions of the modules that are imported by now. Once more after a model is built,
    for those that it imports then."""
    for module, replacement in REPLACEMENTS.items():
        if module in sys.modules:
            importlib.import_module(replacement)
