# SPDX-License-Identifier: Apache-2.0
"""Functions of vLLM that launch Triton kernels, written from what the kernels compute. Arithmetic
is in float32, and is rounded where theirs is."""
