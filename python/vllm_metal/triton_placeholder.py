# SPDX-License-Identifier: Apache-2.0
"""Without Triton, vLLM puts a placeholder in its place. Some layers ask it for plain functions when
they are built, and its kernels are plain functions that no one can launch."""

from collections.abc import Callable
from typing import Any

from vllm.triton_utils import tl, triton

from vllm_metal.patches import provides


@provides(triton, "set_allocator")
def set_allocator(allocator: Any) -> None:
    """No kernel needs scratch memory."""


@provides(triton, "next_power_of_2")
def next_power_of_2(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()


class Kernel:
    """A Triton kernel that can be named and passed on, and says what it is when it is launched."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.func = self.fn = function
        self.__name__ = function.__name__
        self.__module__ = function.__module__
        self.__doc__ = function.__doc__

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{self.__module__}.{self.__name__} is a Triton kernel and has no PyTorch form yet"
        )


def jit(function: Any = None, **options: Any) -> Any:
    """`triton.jit`, with or without options."""
    return Kernel(function) if callable(function) else Kernel


if not hasattr(tl, "float32"):  # the placeholder: kernels of modules that are imported from now on
    triton.jit = jit
    for name in ("float16", "bfloat16", "float32", "float64", "int1", "int8", "int16", "uint32"):
        setattr(tl, name, name)
