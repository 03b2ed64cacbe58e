# SPDX-License-Identifier: Apache-2.0
"""Builds vLLM's own model without its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from vllm_metal import layers, patches
from vllm_metal.cuda_placeholder import without_streams


def construct(vllm_config: VllmConfig) -> nn.Module:
    """vLLM's model for ``vllm_config`` with every parameter on the meta device.

    Buffers and other tensors computed at construction (rope tables, alibi slopes) have their
    values. vLLM's process groups must exist (see ``single_process``).
    """
    layers.register()
    patches.prepare(vllm_config.model_config)
    dtype = vllm_config.model_config.dtype
    with set_default_torch_dtype(dtype), _weightless_parameters(), without_streams():
        model = initialize_model(vllm_config=vllm_config).eval()
    patches.apply()
    return model


@contextmanager
def _weightless_parameters() -> Iterator[None]:
    """Drop the storage of each parameter as it is registered.

    The storage was only reserved until then (``torch.empty`` does not touch it), so at most one
    parameter that its module fills at once is ever resident. The parameter object stays the same:
    weight loaders, subclasses and ties survive.
    """
    register = nn.Module.register_parameter

    def register_weightless(self: nn.Module, name: str, param: Any) -> None:
        if isinstance(param, nn.Parameter) and not param.is_meta:
            drop_storage(param)
        register(self, name, param)

    nn.Module.register_parameter = register_weightless  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def drop_storage(parameter: nn.Parameter) -> None:
    """Move a parameter to the meta device, unless it has views; it stays the same object."""
    # ``parameter.data = ...`` refuses another kind of device, so the object's insides are swapped
    # and its own class and attributes put back.
    kind, attributes = type(parameter), dict(parameter.__dict__)
    empty = nn.Parameter(
        torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
    )
    try:
        torch.utils.swap_tensors(parameter, empty)
    except RuntimeError:  # a buffer is a view of the parameter: the memory stays with it
        return
    parameter.__class__ = kind
    parameter.__dict__.update(attributes)
