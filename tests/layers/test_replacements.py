# SPDX-License-Identifier: Apache-2.0
"""Replaced functions of vLLM that no other test compares with what they replace."""

import pytest
import torch
from vllm.model_executor.layers.mamba.gdn import olmo_gdn_linear_attn
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from vllm_metal import patches
from vllm_metal.attention import MetalAttentionBackend
from vllm_metal.layers.zero_experts import zero_experts


def test_experts_that_copy_add_the_tokens_by_their_weights() -> None:
    """Against the definition, token by token."""
    torch.manual_seed(0)
    ids = torch.tensor([[0, 5], [4, 7], [3, 2]], dtype=torch.int32)
    weights, x = torch.rand(3, 2), torch.randn(3, 8)
    found = zero_experts(ids, weights, 4, "identity", x)
    copies = [[1], [0, 1], []]  # places of the experts from the fourth on
    expected = [
        sum((weights[t, i] * x[t] for i in p), x.new_zeros(8)) for t, p in enumerate(copies)
    ]
    torch.testing.assert_close(found, torch.stack(expected))


def test_other_experts_without_weights_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="constant"):
        zero_experts(torch.zeros(1, 1), torch.ones(1, 1), 4, "constant", torch.ones(1, 8))


@pytest.mark.parametrize("name", ["FLASH_ATTN_DIFFKV", "TRITON_ATTN_DIFFKV"])
def test_attention_with_narrow_values_is_ours(name: str) -> None:
    assert AttentionBackendEnum[name].get_class() is MetalAttentionBackend


def test_a_joint_convolution_takes_its_parts() -> None:
    patches.apply()
    load = olmo_gdn_linear_attn._make_fused_conv1d_weight_loader([2, 2, 3], 1, 0)
    joint = torch.nn.Parameter(torch.zeros(7, 1, 4), requires_grad=False)
    parts = [torch.randn(size, 1, 4) for size in (2, 2, 3)]
    for shard, part in enumerate(parts):
        part.shard_id = shard  # type: ignore[attr-defined]
        load(joint, part)
    torch.testing.assert_close(joint.data, torch.cat(parts))
