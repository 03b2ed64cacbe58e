# SPDX-License-Identifier: Apache-2.0
"""vLLM's sparse indexer on `key_selection`.

vLLM quantises its keys to FP8 with scales, and hands the selected positions on in a buffer that all
layers share: layers without an index of their own read what the last one with it wrote. Here keys
have the model's dtype, and the positions are a value in the step's forward context.
"""

from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.sparse_attn_indexer import SparseAttnIndexer
from vllm.model_executor.models.deepseek_v2 import DeepseekV32IndexerCache

from vllm_metal import key_selection  # noqa: F401  defines torch.ops.vllm_metal
from vllm_metal.latent_attention import MetalSparseLatentAttentionBackend, name_selected_keys
from vllm_metal.patches import replaces

_build = SparseAttnIndexer.__init__


@replaces(SparseAttnIndexer, "__init__")
def build(self: SparseAttnIndexer, k_cache: Any, *args: Any, **kwargs: Any) -> None:
    _build(self, k_cache, *args, **kwargs)
    if self.compress_ratio != 1 or self.candidate_blocks is not None:
        raise NotImplementedError("an index of compressed keys, or in two levels")
    k_cache.head_dim = self.head_dim
    k_cache.dtype = get_current_vllm_config().model_config.dtype


@replaces(SparseAttnIndexer, "forward_native")
def select(
    self: SparseAttnIndexer,
    hidden_states: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """q [num_tokens, num_heads, head_dim], k [num_tokens, head_dim] and weights [num_tokens,
    num_heads], scales included -> int32[num_tokens, topk_tokens]."""
    selected = torch.ops.vllm_metal.select_keys(
        q, k.unsqueeze(1), weights, self.topk_tokens, self.k_cache.prefix
    )
    name_selected_keys(self.topk_indices_buffer, selected)
    return selected


@replaces(DeepseekV32IndexerCache, "get_attn_backend")
def get_attn_backend(
    self: DeepseekV32IndexerCache,
) -> type[MetalSparseLatentAttentionBackend]:
    return MetalSparseLatentAttentionBackend
