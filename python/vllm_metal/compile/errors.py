# SPDX-License-Identifier: Apache-2.0
"""What can go wrong while PyTorch code is compiled."""


class CompileError(RuntimeError):
    """A graph can't be lowered; the message names the node, its module and its source line."""
