# SPDX-License-Identifier: Apache-2.0
"""Models of architectures that only vLLM has: a configuration from what the model's code asks for,
and random weights under vLLM's own names."""

import json
import re
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, LlamaConfig

from vllm_metal.capture import capture_config, construct, single_process
from zoo import keys
from zoo.checkpoint import STD
from zoo.draw import configuration

MOST_KEYS = 40
_MISSING = re.compile(r"'\w*?(Text)?(?:Config)?' object has no attribute '(\w+)'")


class Fields(dict[str, Any]):
    """An object of a configuration whose keys are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class SyntheticConfig(LlamaConfig):
    """What a checkpoint's own configuration class does: every key is an attribute."""

    model_type = "synthetic"

    def __init__(self, **keys: Any) -> None:
        super().__init__(**keys)
        for name in keys.keys() - {"rope_scaling", "rope_parameters"}:
            setattr(self, name, _fields(keys[name]))


def _fields(value: Any) -> Any:
    if isinstance(value, dict):
        return Fields({name: _fields(item) for name, item in value.items()})
    return [_fields(item) for item in value] if isinstance(value, list) else value


def write_config(architecture: str, directory: Path, added: list[str]) -> None:
    """Write `config.json` with every key that constructing vLLM's model asks for, and those that
    running it turned out to lack.

    Raises what constructing raises once no key is missing whose value is known.
    """
    AutoConfig.register(SyntheticConfig.model_type, SyntheticConfig, exist_ok=True)
    path = directory / "config.json"
    config = _beginning(architecture)
    text = config.get("text_config", config)
    for name in added:
        text.setdefault(name, keys.value_without_class(name, config | text))
    for _ in range(MOST_KEYS):
        path.write_text(json.dumps(config))
        try:
            vllm_config = capture_config(directory, "float32", max_model_len=128)
            with single_process(vllm_config):
                construct(vllm_config)
            return
        except AttributeError as error:
            missing = _MISSING.search(str(error))
            if missing is None:
                raise
            of_text, name = missing.groups()
            part = text if of_text else config
            if name in part:
                raise
            try:
                part[name] = keys.value_without_class(name, config | part)
            except KeyError:
                raise error from None
        except RuntimeError:  # a model of experts that was told of none
            experts = _expert_keys(architecture, config)
            if experts.keys() <= config.keys():
                raise
            config |= experts
    raise ValueError(f"{architecture} asks for more than {MOST_KEYS} keys")


def _beginning(architecture: str) -> dict[str, Any]:
    """A configuration class of the same name if there is one; or the plainest, with the kinds of
    layers that the model's source tells apart."""
    from transformers import CONFIG_MAPPING
    from vllm.model_executor.models import registry
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    module = registry._TEXT_GENERATION_MODELS[architecture][0].rsplit(".", 1)[-1]
    stem = re.sub(r"(ForCausalLM|ForConditionalGeneration|Model)$", "", architecture)
    known = {_plain(name): name for name in [*CONFIG_MAPPING.keys(), *_CONFIG_REGISTRY]}
    name = known.get(_plain(stem)) or known.get(_plain(module))
    if name is None:
        name = SyntheticConfig.model_type
        config = configuration(LlamaConfig, architecture).to_dict()
        config |= _layer_kinds(architecture, config)
    else:
        config_class = _CONFIG_REGISTRY[name] if name in _CONFIG_REGISTRY else CONFIG_MAPPING[name]
        config = configuration(config_class, architecture).to_dict()
    if "initializer_range" in config:
        config["initializer_range"] = 1.0  # some divide vectors by it, and `load` draws them near 1
    return config | keys.REQUIRED | {"model_type": name, "architectures": [architecture]}


def _source(architecture: str) -> str:
    from vllm.model_executor.models import registry

    home = registry._TEXT_GENERATION_MODELS[architecture][0]
    spec = find_spec(home if home.startswith("vllm.") else f"vllm.model_executor.models.{home}")
    return "" if spec is None or spec.origin is None else Path(spec.origin).read_text("utf-8")


def _expert_keys(architecture: str, config: dict[str, Any]) -> dict[str, Any]:
    """Keys about experts that a model's source asks for without insisting on them."""
    pattern = r"attr\(\s*config, \"(num_experts|n_routed_experts|first_k_\w+)\""
    return {
        key: keys.value_without_class(key, config)
        for key in re.findall(pattern, _source(architecture))
    }


def _layer_kinds(architecture: str, config: dict[str, Any]) -> dict[str, Any]:
    """`layer_types`, where a model has two kinds of layers that are not known by default."""
    source = _source(architecture)
    kinds = [kind for kind in ("linear_attention", "full_attention") if f'"{kind}"' in source]
    if len(kinds) < 2:
        return {}
    layers = range(config["num_hidden_layers"])
    return {"layer_types": [kinds[layer % len(kinds)] for layer in layers]}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@torch.no_grad()
def load(loader: Any, model: nn.Module, model_config: Any) -> None:
    """In the place of vLLM's dummy loader: the same weights for the same names, matrices around 0
    and vectors around 1."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            mean = 1.0 if parameter.dim() < 2 else 0.0
            values = torch.normal(mean, STD, parameter.shape, generator=generator)
            # vLLM keeps a decay as what it loads `A_log` to: negative, or the state grows.
            parameter.copy_(-values.exp() if name.endswith(".A") else values)
