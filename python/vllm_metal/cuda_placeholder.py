# SPDX-License-Identifier: Apache-2.0
"""Without CUDA there are no streams. Models of vLLM make some when they are built, and take what is
None for "do it in order"."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class NoStream:
    """`NoStream()` is None."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return None


class NoEvent:
    """An event that has happened whenever it is waited for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self, *args: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


@contextmanager
def without_streams() -> Iterator[None]:
    """Around the building of a model or of a runner."""
    stream, event = torch.cuda.Stream, torch.cuda.Event
    torch.cuda.Stream, torch.cuda.Event = NoStream, NoEvent  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.cuda.Stream, torch.cuda.Event = stream, event  # type: ignore[misc]
