# SPDX-License-Identifier: Apache-2.0
"""What can go wrong while a model is captured, each with the place in the model where it did."""


class CaptureError(RuntimeError):
    """A model can't be captured; the message names the module, the source line and the cause."""


class TokenCountGuardError(CaptureError):
    """The model branches on the number of tokens, so one graph cannot serve every batch."""
