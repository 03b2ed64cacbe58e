# SPDX-License-Identifier: Apache-2.0
"""Layers of vLLM that are CUDA or Triton kernels elsewhere, in PyTorch: what capture sees of them,
and what the PyTorch path runs."""

import functools


@functools.cache
def register() -> None:
    """Put them in the place of vLLM's, in the process that builds the model."""
    from vllm_metal import triton_overrides
    from vllm_metal.layers import moe, routing

    triton_overrides.register()
    routing.register()
    moe.register()
