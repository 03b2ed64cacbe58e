# SPDX-License-Identifier: Apache-2.0
"""Parameters cost nothing, what a model computes about itself keeps its values."""

from collections.abc import Callable

import pytest
import torch
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from vllm_metal.capture import capture, fill_parameters, single_process

from .conftest import Build
from .models import CONFIGS


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_have_no_storage(build: Build, name: str) -> None:
    model, vllm_config = build(name)
    parameters = dict(model.named_parameters())
    assert parameters and all(parameter.is_meta for parameter in parameters.values())
    captured = capture(model, vllm_config)
    assert set(captured.parameters) <= set(parameters)
    assert all(parameter.is_meta for parameter in model.parameters())
    for path, (dtype, shape) in captured.parameters.items():
        assert (parameters[path].dtype, tuple(parameters[path].shape)) == (dtype, shape)


@pytest.mark.parametrize("name", ["llama_scaled_rope", "gemma3_text", "bloom", "glm"])
def test_buffers_equal_a_real_construction(
    configure: Callable[..., VllmConfig], build: Build, name: str
) -> None:
    model, vllm_config = build(name)
    captured = capture(model, vllm_config)
    real_config = configure(name)
    with single_process(real_config), set_default_torch_dtype(torch.float32):
        real = initialize_model(vllm_config=real_config)
        layers = capture(real, real_config).layers
    real_buffers = dict(real.named_buffers())
    assert captured.layers == layers
    for path, value in captured.buffers.items():
        assert torch.equal(value, real_buffers[path]), path
    assert captured.buffers or any(layer["alibi_slopes"] for layer in layers.values())


def test_a_loaded_model_gives_the_same_document(build: Build) -> None:
    model, vllm_config = build("qwen3")
    weightless = capture(model, vllm_config)
    fill_parameters(model)
    before = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    assert capture(model, vllm_config).document == weightless.document
    after = model.state_dict()
    assert all(torch.equal(tensor, after[path]) for path, tensor in before.items())


def test_attributes_of_a_parameter_survive(build: Build) -> None:
    """vLLM's loaders stay usable: they are attributes set before and after registration."""
    model, _ = build("llama")
    assert all(hasattr(p, "weight_loader") for n, p in model.named_parameters() if "proj" in n)


def test_tied_weights_have_one_name(build: Build) -> None:
    model, vllm_config = build("qwen3")
    captured = capture(model, vllm_config)
    assert captured.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in captured.parameters
