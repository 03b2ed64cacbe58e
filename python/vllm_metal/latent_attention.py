# SPDX-License-Identifier: Apache-2.0
"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1), absorbed.

The cache holds one latent `c` [kv_lora_rank] and one rotary key [qk_rope_head_dim] per token. With

    k = [W_uk c, k_rope],  v = W_uv c   ==>   q . k = [W_uk^T q_nope, q_rope] . [c, k_rope]

all heads attend over the same single key head, whose first `kv_lora_rank` elements are the value,
and `W_uv` is applied to the result. So the layer is two small products around ordinary attention,
which capture sees as such: `vllm.unified_attention_with_output` on the layer's cache, or, where an
index selects the keys, `vllm_metal.sparse_attention`.
"""

from typing import Any

import torch
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention.mla_attention import MLAAttention, split_kv_b_proj
from vllm.utils.torch_utils import _encode_layer_name
from vllm.v1.attention.backends.mla.prefill.base import MLAPrefillBackend

from vllm_metal import key_selection  # noqa: F401  defines torch.ops.vllm_metal
from vllm_metal.attention import MetalAttentionBackend, MetalAttentionImpl
from vllm_metal.patches import replaces


class MetalLatentAttentionImpl(MetalAttentionImpl):
    """Attention over keys [num_tokens, 1, kv_lora_rank + qk_rope_head_dim] whose first
    `kv_lora_rank` elements are the values; only the keys are kept."""

    def __init__(self, *args: Any, kv_lora_rank: int, **kwargs: Any) -> None:
        # vLLM's MLA arguments describe the products around the attention.
        known = MetalAttentionImpl.__init__.__annotations__
        super().__init__(*args, **{name: kwargs[name] for name in kwargs if name in known})
        self.kv_lora_rank = kv_lora_rank
        self.topk_indices_buffer: torch.Tensor | None = kwargs.get("topk_indices_buffer")

    def record_logical_topk_ready(self) -> None:
        """Selected keys are a value like others: nothing has to wait for them."""

    def forward(
        self, layer: Any, query: Any, key: Any, value: Any, kv_cache: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As its parent's; the cache is [num_blocks, block_size, head_size]."""
        pages = kv_cache.unsqueeze(1) if kv_cache.dim() == 3 else kv_cache
        return super().forward(layer, query, key, value[..., :0], pages, *args, **kwargs)

    def _keys_and_values(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tokens, tokens[..., : self.kv_lora_rank]


class MetalLatentAttentionBackend(MetalAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[MetalLatentAttentionImpl]:
        return MetalLatentAttentionImpl

    @classmethod
    def is_mla(cls) -> bool:
        return True


class MetalSparseLatentAttentionBackend(MetalLatentAttentionBackend):
    """Of layers that attend to selected keys, and of the caches that these are selected by."""

    @classmethod
    def is_sparse(cls) -> bool:
        return True


class MetalPrefillBackend(MLAPrefillBackend):
    """What vLLM asks a platform to name; prefill is the same attention as decode here."""

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    def run_prefill_new_tokens(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("MLAAttention.forward does not ask for it")

    run_prefill_context_chunk = run_prefill_new_tokens


@replaces(MLAAttention, "forward")
def forward(
    self: MLAAttention,
    q: torch.Tensor,
    kv_c_normed: torch.Tensor,
    k_pe: torch.Tensor,
    output_shape: torch.Size | None = None,
    q_dcp_replicated: torch.Tensor | None = None,
) -> torch.Tensor:
    """q [num_tokens, num_heads, qk_nope_head_dim + qk_rope_head_dim], kv_c_normed [num_tokens,
    kv_lora_rank], k_pe [num_tokens, 1, qk_rope_head_dim] -> [num_tokens, num_heads *
    v_head_dim]."""
    selected = _selected_keys(self.impl.topk_indices_buffer) if self.use_sparse else None
    return attend_absorbed(self, q, kv_c_normed, k_pe, self.num_heads, selected)


def attend_absorbed(
    layer: Any,
    q: torch.Tensor,
    kv_c_normed: torch.Tensor,
    k_pe: torch.Tensor,
    num_heads: int,
    selected: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `forward` says, by any layer with such weights and a cache of its name; of the selected
    keys int32[num_tokens, count], or all."""
    w_uk, w_uv = split_kv_b_proj(
        layer.kv_b_proj,
        q.dtype,
        layer.kv_lora_rank,
        num_heads,
        layer.qk_nope_head_dim,
        layer.v_head_dim,
    )
    q_nope, q_rope = q.split([layer.qk_nope_head_dim, layer.qk_rope_head_dim], dim=-1)
    q_latent = torch.bmm(q_nope.transpose(0, 1), w_uk.permute(1, 2, 0)).transpose(0, 1)
    query = torch.cat([q_latent, q_rope], dim=-1)
    key, value = torch.cat([kv_c_normed.unsqueeze(1), k_pe], dim=-1), kv_c_normed.unsqueeze(1)
    if selected is None:
        latent = torch.empty_like(q_latent)
        torch.ops.vllm.unified_attention_with_output(
            query, key, value, latent, _encode_layer_name(layer.layer_name)
        )
    else:
        latent = torch.ops.vllm_metal.sparse_attention(
            query, selected, key, value, layer.layer_name
        )
    result = torch.bmm(latent.transpose(0, 1), w_uv.transpose(0, 1)).transpose(0, 1)
    return result.reshape(q.shape[0], num_heads * layer.v_head_dim)


def name_selected_keys(buffer: torch.Tensor, selected: torch.Tensor) -> None:
    """What layers with vLLM's buffer of positions attend to from now on in this step: selected
    int32[num_tokens, count]."""
    get_forward_context().additional_kwargs[f"selected_keys_{id(buffer)}"] = selected


def _selected_keys(buffer: Any) -> torch.Tensor:
    selected = get_forward_context().additional_kwargs.get(f"selected_keys_{id(buffer)}")
    if selected is None:
        raise ValueError("a layer attends to selected keys, and none before it selects them")
    return selected


@replaces(MLAAttention, "process_weights_after_loading")
def process_weights_after_loading(self: MLAAttention, act_dtype: torch.dtype) -> None:
    """vLLM keeps both halves of `kv_b_proj` a second time; `forward` reads them where they lie."""
