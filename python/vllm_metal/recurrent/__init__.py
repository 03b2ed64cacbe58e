# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers: what each of vLLM's computes, by a few recurrences with a state per request.

`operators` are the recurrences, which capture keeps whole, and `definitions` say token by token
what they compute: the reference for the lowered ones. `metadata` says which state a request reads
and writes. Each other module states one of vLLM's layers in PyTorch on the operators.
"""
