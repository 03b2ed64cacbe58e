# SPDX-License-Identifier: Apache-2.0
"""PyTorch versions of Triton kernels that vLLM launches."""

import functools
import warnings

import torch
from vllm.triton_utils.dispatcher import register_kernels


def compute_slot_mapping(
    num_tokens: int,
    max_num_tokens: int,
    query_start_loc_ptr: torch.Tensor,
    positions_ptr: torch.Tensor,
    block_table_ptr: torch.Tensor,
    block_table_stride: int,
    slot_mapping_ptr: torch.Tensor,
    KV_CACHE_BLOCK_SIZE: int,
    TOTAL_CP_WORLD_SIZE: int = 1,
    TOTAL_CP_RANK: int = 0,
    CP_KV_CACHE_INTERLEAVE_SIZE: int = 1,
    PAD_ID: int = -1,
    BLOCK_SIZE: int = 1024,
) -> None:
    """Slot of each token's K and V: block number times block size plus the place in the block.

    query_start_loc int32[num_reqs + 1], positions int64[num_tokens], block_table
    int32[max_num_reqs, block_table_stride], slot_mapping int64[max_num_tokens] (written; the part
    behind num_tokens becomes PAD_ID). The parameter names are those of vLLM's kernel,
    `vllm.v1.worker.block_table.ComputeSlotMappingKernel.kernel`.
    """
    query_lens = query_start_loc_ptr.diff().long()
    count = int(query_lens.sum())
    requests = torch.repeat_interleave(torch.arange(query_lens.shape[0]), query_lens)
    positions = positions_ptr[:count]
    blocks = block_table_ptr.view(-1, block_table_stride)[
        requests, positions // KV_CACHE_BLOCK_SIZE
    ].long()
    slot_mapping_ptr[:count] = blocks * KV_CACHE_BLOCK_SIZE + positions % KV_CACHE_BLOCK_SIZE
    slot_mapping_ptr[num_tokens:max_num_tokens] = PAD_ID


def compute_identity_experts(
    top_k: int,
    hidden_states_ptr: torch.Tensor,
    expert_scales_ptr: torch.Tensor,
    num_tokens: int,
    output_ptr: torch.Tensor,
    hidden_dim: int,
    scales_stride: int,
    BLOCK_SIZE: int,
) -> None:
    """Experts that hand their token on: output [num_tokens, hidden_dim] (written) is the token
    times the sum of their weights, expert_scales [num_tokens, top_k]. The parameter names are those
    of vLLM's kernel, `vllm.model_executor.layers.fused_moe.fused_moe.compute_identity_kernel`.
    """
    output_ptr.copy_(hidden_states_ptr.float() * expert_scales_ptr.sum(dim=-1, keepdim=True))


@functools.cache
def register() -> None:
    """Put these in the place of vLLM's kernels, in the process that runs the model."""
    with warnings.catch_warnings():  # vLLM looks at every attribute of every module
        warnings.simplefilter("ignore", FutureWarning)
        register_kernels(
            {
                "vllm.v1.worker.block_table.ComputeSlotMappingKernel.kernel": compute_slot_mapping,
                "vllm.model_executor.layers.fused_moe.fused_moe.compute_identity_kernel": (
                    compute_identity_experts
                ),
            }
        )
