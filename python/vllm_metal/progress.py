# SPDX-License-Identifier: Apache-2.0
"""Progress bars of capture and lowering."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from tqdm import tqdm

DELAY_SECONDS = 1.0
"""What is done sooner shows no bar."""


@contextmanager
def capturing(model: nn.Module, shown: bool | None) -> Iterator[None]:
    """A bar on stderr that counts the modules which have run; `shown` None is: on a terminal."""
    modules = sum(1 for _ in model.modules())
    with _bar("capture", modules, "modules", shown) as bar:

        def count(module: nn.Module, args: Any, output: Any) -> None:
            # A module that several layers share runs more often than it is counted.
            if bar.n < modules:
                bar.update()

        hook = register_module_forward_hook(count)
        try:
            yield
        finally:
            hook.remove()


@contextmanager
def lowering(shown: bool | None) -> Iterator[None]:
    """A bar on stderr for the Rust part, which is one step."""
    with _bar("lowering", 1, "plans", shown) as bar:
        yield
        bar.update()


def _bar(title: str, total: int, unit: str, shown: bool | None) -> Any:
    disable = not sys.stderr.isatty() if shown is None else not shown
    return tqdm(
        total=total,
        desc=title,
        unit=unit,
        delay=0 if shown else DELAY_SECONDS,
        disable=disable,
        file=sys.stderr,
        leave=False,
    )
