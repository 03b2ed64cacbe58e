# SPDX-License-Identifier: Apache-2.0
"""Runs Metal kernels on the CPU: MLX writes the kernel's text, clang compiles it against a host
stand-in for Metal's library, and fibers execute the threads.

It finds wrong results, missing barriers, divergence, accesses outside buffers and memory that
nobody wrote. It says nothing about speed, about Metal's fast mathematics, or about what only
Apple's compiler knows; `lint` looks for some of that.
"""

from .errors import KernelError
from .execute import run

__all__ = ["KernelError", "run"]
