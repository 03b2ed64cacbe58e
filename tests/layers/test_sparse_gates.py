# SPDX-License-Identifier: Apache-2.0
"""vLLM's `gelu_and_mul_sparse`, lowered, is vLLM's."""

import pytest
import torch

from vllm_metal.compile import lower_function


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_and_mul_sparse(approximate: str) -> None:
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.vllm_ir.gelu_and_mul_sparse(x, 0.5, approximate)

    lowered = lower_function(function, (x,))
    assert lowered.report["fallback"] == []
    torch.testing.assert_close(lowered(x), function(x), atol=1e-6, rtol=1e-5)
