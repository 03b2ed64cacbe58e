# SPDX-License-Identifier: Apache-2.0
"""A tiny model per test, built weight-free inside vLLM's surroundings of one process."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from torch import nn
from vllm.config import VllmConfig

from vllm_metal.capture import capture_config, construct, single_process

from .models import write_config

Build = Callable[..., tuple[nn.Module, VllmConfig]]


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., VllmConfig]:
    """Gives the configuration of a model by name."""

    def make(name: str, dtype: str = "float32") -> VllmConfig:
        return capture_config(write_config(name, tmp_path / name), dtype=dtype)

    return make


@pytest.fixture
def build(configure: Callable[..., VllmConfig]) -> Iterator[Build]:
    """Builds a model by name and stays in its surroundings until the test ends."""
    with ExitStack() as stack:

        def make(name: str, dtype: str = "float32") -> tuple[nn.Module, VllmConfig]:
            vllm_config = configure(name, dtype)
            stack.enter_context(single_process(vllm_config))
            return construct(vllm_config), vllm_config

        yield make
