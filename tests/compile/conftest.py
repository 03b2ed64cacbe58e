# SPDX-License-Identifier: Apache-2.0
"""The backend under its name, as the entry point gives it to an installed package."""

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.backends import registry

from vllm_metal.compile import mlx, reset_reports


@pytest.fixture(scope="session", autouse=True)
def backend() -> None:
    """Registers the backend where the package's metadata is older than its entry point."""
    if "mlx" not in registry.list_backends():
        registry.register_backend(mlx, name="mlx")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Dynamo without what earlier tests compiled, and no reports."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    reset_reports()
    yield
    torch._dynamo.reset()
