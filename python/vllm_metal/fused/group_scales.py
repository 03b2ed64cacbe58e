# SPDX-License-Identifier: Apache-2.0
"""Values that vLLM's kernels take in FP8 with scales by group: here they stay what they are.

Checkpoints are not quantised here, so this is about values that a model computes, such as the
queries of a sparse indexer.
"""

from typing import Any

import torch
from vllm.model_executor.layers.quantization.utils import fp8_utils

from vllm_metal.patches import replaces_function


@replaces_function(fp8_utils, "per_token_group_quant_fp8")
def keep(x: torch.Tensor, group_size: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """x [.., n] and scales of one, float32 [.., ceil(n / group_size)]."""
    groups = -(-x.shape[-1] // group_size)
    return x, torch.ones((*x.shape[:-1], groups), dtype=torch.float32, device=x.device)
