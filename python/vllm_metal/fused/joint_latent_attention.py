# SPDX-License-Identifier: Apache-2.0
"""vLLM's latent attention with its cache writes and products in kernels, on `latent_attention`; and
the products that are joined with communication between devices, of which there is one here."""

from typing import Any

import torch
from vllm.models.kimi_k3.nvidia import mla, model

from vllm_metal.latent_attention import attend_absorbed
from vllm_metal.patches import replaces, replaces_function


@replaces_function(model, "maybe_init_gemm_rs_ar")
def has_joint_products(vllm_config: Any, use_sequence_parallel: bool) -> bool:
    return False


@replaces(mla.MultiHeadLatentAttention, "process_weights_after_loading")
def keep_weights(self: mla.MultiHeadLatentAttention, act_dtype: torch.dtype) -> None:
    """vLLM keeps both halves of `kv_b_proj` a second time; they are read where they lie."""


@replaces(mla.MultiHeadLatentAttention, "_attention")
def attend(
    self: mla.MultiHeadLatentAttention,
    positions: torch.Tensor,
    q: torch.Tensor,
    kv_c_normed: torch.Tensor,
    k_pe: torch.Tensor,
    attn_out: torch.Tensor,
) -> None:
    """Fills attn_out [num_tokens, num_heads * v_head_dim] from q [num_tokens, num_heads,
    qk_head_dim], kv_c_normed [num_tokens, kv_lora_rank] and k_pe [num_tokens, 1,
    qk_rope_head_dim]."""
    if self.rotary_emb is not None:
        nope, rope = q.split([self.qk_nope_head_dim, self.qk_rope_head_dim], dim=-1)
        rope, k_pe = self.rotary_emb(positions, rope, k_pe)
        q = torch.cat([nope, rope], dim=-1)
    attn_out.copy_(attend_absorbed(self, q, kv_c_normed, k_pe, self.num_local_heads))
