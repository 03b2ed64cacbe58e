# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints, saved as Hugging Face saves them."""

from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from zoo import differences, pooled
from zoo.case import TOLERANCE
from zoo.compare import log_probabilities, prompts
from zoo.draw import configuration

STD = 0.1
"""Of all matrices: with the usual 0.02 the layers add so little to the residual stream that a model
without rotary embeddings still passes for the right one."""


def build(architecture: str, directory: Path) -> PreTrainedModel:
    """Draw a model in float32, save it to `directory` and return it in evaluation mode.

    Tensors are renamed to what vLLM's loader asks for where that is something else.
    """
    model_class = getattr(transformers, architecture)
    config = configuration(model_class.config_class, architecture, partial(_answer, model_class))
    config._attn_implementation = "eager"
    torch.manual_seed(sum(architecture.encode()))
    model = model_class(config).float().eval()
    randomise(model)
    model.config.architectures = [architecture]
    model.save_pretrained(directory)
    differences.rename(directory / "model.safetensors", model, architecture)
    return model


def _answer(model_class: type[PreTrainedModel], config: PretrainedConfig) -> None:
    """Raises what the model raises for some tokens, built as the configuration says.

    Raises ValueError where float32 has no digits enough to compare answers by: the model's own
    differ too much from its answers with weights that are rounded otherwise.
    """
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = model_class(config).float().eval()
    randomise(model)
    first = answer(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + torch.finfo(torch.float32).eps / 2 * torch.randn_like(parameter))
    apart = (answer(model) - first).abs().max().item()
    if not apart < TOLERANCE / 2:
        raise ValueError(f"answers differ by {apart:.1e} with weights rounded otherwise")


def answer(model: PreTrainedModel) -> torch.Tensor:
    """float32[rows, size]: what the model makes of some tokens."""
    prompt = prompts()[-1]
    if model.can_generate():
        return log_probabilities(model, prompt, [])
    return pooled.outputs(model, prompt)[0]


@torch.no_grad()
def randomise(model: torch.nn.Module, std: float = STD) -> None:
    """Redraw the weights. What does not start around zero (norm weights, decays) stays near what it
    starts from, and what starts at zero (biases, corrections of a router) does not stay there.
    Other buffers are constants."""
    zeros = [buffer for buffer in _persistent_buffers(model) if bool((buffer == 0).all())]
    seen = set()
    for tensor in [*model.parameters(), *zeros]:
        if not tensor.is_floating_point() or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        noise = torch.randn_like(tensor) * std
        centred = tensor.dim() > 1 and tensor.mean().abs() < 3 * std
        tensor.copy_(noise if centred or bool((tensor == 0).all()) else tensor + noise)


def _persistent_buffers(model: torch.nn.Module) -> list[torch.Tensor]:
    kept = model.state_dict()
    return [buffer for name, buffer in model.named_buffers() if name in kept]
