# SPDX-License-Identifier: Apache-2.0
"""Without Triton, vLLM puts a placeholder in its place. Some layers ask it for plain functions when
they are built."""

from typing import Any

from vllm.triton_utils import triton

from vllm_metal.patches import provides


@provides(triton, "set_allocator")
def set_allocator(allocator: Any) -> None:
    """No kernel needs scratch memory."""


@provides(triton, "next_power_of_2")
def next_power_of_2(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()
