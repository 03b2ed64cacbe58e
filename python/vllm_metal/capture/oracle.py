# SPDX-License-Identifier: Apache-2.0
"""What it takes to run a model, or its document, with PyTorch outside a server."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention import Attention

from vllm_metal.attention import MetalAttentionMetadata


def fill_parameters(model: nn.Module, *, seed: int = 0, std: float = 0.08) -> None:
    """Give a weight-free model random parameters: a model that has no checkpoint can be run too.

    Matrices have mean 0 and vectors (norm weights, biases) mean 1, so that no part of the model is
    mute; ``std`` is that of both.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        mean = 1.0 if parameter.dim() == 1 else 0.0
        if not parameter.dtype.is_floating_point:
            raise ValueError(f"can't draw random {parameter.dtype} values for a quantised model")
        values = torch.normal(mean, std, parameter.shape, generator=generator)
        kind, attributes = type(parameter), dict(parameter.__dict__)
        real = nn.Parameter(values.to(parameter.dtype), requires_grad=False)
        torch.utils.swap_tensors(parameter, real)
        parameter.__class__ = kind
        parameter.__dict__.update(attributes)


@contextmanager
def prefill(vllm_config: VllmConfig, num_tokens: int, block_size: int = 16) -> Iterator[None]:
    """vLLM's forward context for one request of ``num_tokens`` new tokens and an empty KV cache."""
    context = vllm_config.compilation_config.static_forward_context
    layers = {name: layer for name, layer in context.items() if isinstance(layer, Attention)}
    num_blocks = -(-num_tokens // block_size)
    slots = torch.arange(num_tokens)
    metadata = MetalAttentionMetadata(
        query_start_loc=[0, num_tokens],
        seq_lens=[num_tokens],
        block_table=torch.arange(num_blocks, dtype=torch.int32)[None],
        slot_mapping=slots,
        num_actual_tokens=num_tokens,
        causal=[True],
        bidirectional_ranges={},
    )
    saved = {name: layer.kv_cache for name, layer in layers.items()}
    for layer in layers.values():
        width = layer.head_size + layer.head_size_v
        shape = (num_blocks, layer.num_kv_heads, block_size, width)
        layer.kv_cache = torch.zeros(shape, dtype=layer.kv_cache_torch_dtype)
    for layer in layers.values():
        if layer.kv_sharing_target_layer_name is not None:
            layer.kv_cache = layers[layer.kv_sharing_target_layer_name].kv_cache
    try:
        with (
            torch.no_grad(),
            set_forward_context(
                dict.fromkeys(layers, metadata),
                vllm_config,
                num_tokens=num_tokens,
                slot_mapping=dict.fromkeys(layers, slots),
            ),
        ):
            yield
    finally:
        for name, layer in layers.items():
            layer.kv_cache = saved[name]
