# SPDX-License-Identifier: Apache-2.0
"""What vLLM knows about each layer with a cache and the captured operators only name."""

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface
from vllm.model_executor.layers.mamba.abstract import MambaBase

from vllm_metal.attention import MetalAttentionImpl
from vllm_metal.fx import encode_float
from vllm_metal.latent_attention import MetalLatentAttentionImpl


def describe_layers(model: nn.Module, vllm_config: VllmConfig) -> dict[str, dict[str, Any]]:
    """The document's ``layers``, from vLLM's static forward context, by layer name."""
    context = vllm_config.compilation_config.static_forward_context
    paths = {id(p): path for path, p in model.named_parameters()}
    heads = {
        id(module.k_cache): module.n_head
        for module in model.modules()
        if hasattr(module, "k_cache") and hasattr(module, "n_head")
    }
    return {
        name: {"kind": "index", "num_heads": heads[id(layer)], "head_size": layer.head_dim}
        if id(layer) in heads
        else _describe(layer, paths)
        for name, layer in context.items()
        if not isinstance(layer, MoERunnerInterface)  # the graph holds all of it
    }


def layer_parameters(layers: dict[str, dict[str, Any]]) -> set[str]:
    """Paths of the parameters that layers use out of the graph's sight."""
    hidden = {path for layer in layers.values() for path in layer.get("parameters", ())}
    return hidden | {layer["sinks"] for layer in layers.values() if layer.get("sinks")}


def _describe(layer: nn.Module, parameter_paths: dict[int, str]) -> dict[str, Any]:
    if isinstance(layer, MambaBase):
        return {"kind": "state", "states": [list(shape) for shape in layer.get_state_shape()]}
    impl = getattr(layer, "impl", None)
    if not isinstance(impl, MetalAttentionImpl):
        used = {parameter_paths[id(p)] for p in layer.parameters() if id(p) in parameter_paths}
        return {"kind": type(layer).__name__, "parameters": sorted(used)}
    sinks = getattr(impl, "sinks", None)
    latent = isinstance(impl, MetalLatentAttentionImpl)
    return {
        "kind": "attention",
        "num_heads": impl.num_heads,
        "num_kv_heads": impl.num_kv_heads,
        "head_size": impl.head_size,
        "head_size_v": impl.kv_lora_rank if latent else layer.head_size_v,
        "value_in_key": latent,
        "scale": encode_float(float(impl.scale)),
        "sliding_window": _window(getattr(layer, "sliding_window", None)),
        "logits_soft_cap": _optional_float(getattr(impl, "logits_soft_cap", None)),
        "alibi_slopes": _floats(getattr(impl, "alibi_slopes", None)),
        "use_alibi_sqrt": bool(getattr(layer, "use_alibi_sqrt", False)),
        "sinks": None if sinks is None else parameter_paths[id(sinks)],
        "attn_type": str(getattr(impl.attn_type, "value", impl.attn_type)),
        "kv_sharing_target": impl.kv_sharing_target_layer_name,
        "sparse": bool(getattr(layer, "use_sparse", False)),
    }


def _window(window: Any) -> int | None:
    """Tokens a query sees, itself included; vLLM writes it as a size or as (left, right)."""
    if isinstance(window, (tuple, list)):
        return None if window[0] < 0 else int(window[0]) + 1
    return None if window is None or window < 0 else int(window)


def _optional_float(value: float | None) -> Any:
    # vLLM's back-ends use 0 for "no cap".
    return None if not value else encode_float(float(value))


def _floats(values: Any) -> Any:
    if values is None:
        return None
    values = values.tolist() if isinstance(values, torch.Tensor) else values
    return [encode_float(float(value)) for value in values]
