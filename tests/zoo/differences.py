# SPDX-License-Identifier: Apache-2.0
"""Where vLLM's models are known to compute something else than Hugging Face's.

The plugin compiles vLLM's models, so a reference has to compute what they do: after the checkpoint
is saved, Hugging Face's model is changed in that one respect, and the row of the table says so.

And where vLLM's loader asks for other tensors than Hugging Face's class saves, and which fields of
a configuration vLLM's models do not follow.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearRMSNormGated
from transformers.models.zamba2.modeling_zamba2 import Zamba2RMSNormGated

from zoo.case import CHANGED
from zoo.sizes import seed

Fields = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """`said` goes to the table; `adjust` changes Hugging Face's model in place."""

    said: str
    adjust: Callable[[PreTrainedModel], None]


def _narrow_xielu(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn.to(torch.bfloat16)


def _exact_gelu(model: PreTrainedModel) -> None:
    for layer in model.transformer.h:
        layer.mlp.gelu_impl = nn.GELU()


def _wider_window(model: PreTrainedModel) -> None:
    model.config.sliding_window += 1


def _grouped_norm(model: PreTrainedModel) -> None:
    for layer in model.backbone.layers:
        norm = layer.mixer.norm
        size = norm.weight.numel()
        groups = model.config.n_groups
        layer.mixer.norm = Zamba2RMSNormGated(size, size // groups, norm.variance_epsilon)
        layer.mixer.norm.weight = norm.weight


def _no_token_inputs(model: PreTrainedModel) -> None:
    project = model.model.project_per_layer_inputs
    model.model.per_layer_projection_scale.fill_(1.0)
    model.model.project_per_layer_inputs = lambda embeds, tokens=None: project(embeds, None)


def _no_correction(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("e_score_correction_bias"):
            parameter.data.zero_()


def _unlimited_steps(model: PreTrainedModel) -> None:
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))


def _latent_norms(model: PreTrainedModel) -> None:
    for name, module in model.named_modules():
        if name.endswith(("q_a_layernorm", "kv_a_layernorm")):
            module.variance_epsilon = model.config.rms_norm_eps
        elif name.endswith("indexer.k_norm"):
            module.eps = 1e-6


def _delta_norms(model: PreTrainedModel) -> None:
    for module in model.modules():
        if isinstance(module, KimiLinearRMSNormGated):
            module.variance_epsilon = 1e-5


def _one_group(model: PreTrainedModel) -> None:
    for module in model.modules():
        if hasattr(module, "topk_group"):
            module.num_group = module.topk_group = 1


def _interleaved_rotation(model: PreTrainedModel) -> None:
    def rotate(
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        unsqueeze_dim: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = (x.chunk(2, dim=-1)[0].unsqueeze(unsqueeze_dim) for x in (cos, sin))

        def one(x: torch.Tensor) -> torch.Tensor:
            a, b = x[..., ::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)

        return one(q), one(k)

    sys.modules[type(model).__module__].apply_rotary_pos_emb = rotate  # type: ignore[attr-defined]


def _both(*changes: Callable[[PreTrainedModel], None]) -> Callable[[PreTrainedModel], None]:
    def adjust(model: PreTrainedModel) -> None:
        for change in changes:
            change(model)

    return adjust


_WIDER_WINDOW = "windows are one token longer"

DIFFERENCES = {
    "ApertusForCausalLM": Difference(
        "xIELU's parameters are bfloat16 (layers/activation.py, XIELU)", _narrow_xielu
    ),
    "BloomForCausalLM": Difference(
        "GELU is exact, not its tanh form (models/bloom.py, BloomMLP)", _exact_gelu
    ),
    "Cohere2ForCausalLM": Difference(
        f"{_WIDER_WINDOW} (models/commandr.py, CohereAttention)", _wider_window
    ),
    "Cohere2MoeForCausalLM": Difference(
        f"{_WIDER_WINDOW} (models/cohere2_moe.py, Cohere2MoeAttention)", _wider_window
    ),
    "Gemma3nForCausalLM": Difference(
        "nothing passes per_layer_inputs to the text model, and their projection is not scaled "
        "before its norm (models/gemma3n.py, Gemma3nForCausalLM and get_per_layer_inputs)",
        _no_token_inputs,
    ),
    "HYV4ForCausalLM": Difference(
        "rotations are of neighbouring elements, the norms of both latents have the model's "
        "epsilon and that of index keys has 1e-6 (models/hy_v4/nvidia/attention.py, "
        "HYV4MLAAttention and Indexer), experts are one group (moe.py)",
        _both(_interleaved_rotation, _latent_norms, _one_group),
    ),
    "LagunaForCausalLM": Difference(
        "its loader passes over the router's correction (models/laguna.py, load_weights: "
        "ignore_unexpected_suffixes)",
        _no_correction,
    ),
    "Mamba2ForCausalLM": Difference(
        "the gated norm is over groups (layers/mamba/mamba_mixer2.py, Mixer2RMSNormGated)",
        _grouped_norm,
    ),
    "Zamba2ForCausalLM": Difference(
        "time steps have no lower limit (layers/mamba/mamba_mixer2.py, MambaMixer2)",
        _unlimited_steps,
    ),
}
"""By architecture; those of a model that generates are those of its classifier, too."""

WHERE_DRAWN = (
    # models/deepseek_v2.py: the norms of latents have the model's epsilon.
    _latent_norms,
    # third_party/flash_linear_attention/ops/kda.py: Kimi's gated norms have 1e-5.
    _delta_norms,
    # layers/mamba/mamba_mixer2.py, MambaMixer2: time steps have no limits.
    _unlimited_steps,
)
"""Differences of all architectures that only values other than the usual ones bring out."""


def _takes_longrope(fields: Fields) -> bool:
    return fields.get("rope_parameters", {}).get("rope_type") == "longrope"


NOT_FOLLOWED: dict[str, Callable[[Fields], bool]] = {
    # models/dbrx.py, DbrxAttention: of plain rotations, with the base in attn_config.
    "DbrxForCausalLM": lambda fields: "rope_parameters" in fields,
    # models/ernie45.py has rotations of neighbouring elements, by a switch that
    # Phi3LongRoPEScaledRotaryEmbedding does not look at.
    "Ernie4_5ForCausalLM": _takes_longrope,
    # models/gemma3n.py, Gemma3nAttention: layers share the cache that is one or two layers before
    # all these, which is of their kind in the usual order only.
    "Gemma3nForCausalLM": lambda fields: "layer_types" in fields,
    # models/gpt_oss.py, OAIAttention: every other layer has a window.
    "GptOssForCausalLM": lambda fields: "layer_types" in fields,
    # models/llama4.py, Llama4Attention: chunks where there are rotations.
    "Llama4ForCausalLM": lambda fields: "layer_types" in fields,
    # models/mimo_v2.py: plain rotations of one part in all layers, and no factor of experts.
    "MiMoV2FlashForCausalLM": lambda fields: bool(
        fields.keys() & {"rope_parameters", "routed_scaling_factor"}
    ),
}
"""By architecture: whether vLLM's model of it goes on as before where such fields are changed."""


Tensors = dict[str, torch.Tensor]


def _without_zero_experts(tensors: Tensors, model: PreTrainedModel) -> Tensors:
    # Hugging Face's class has gates and ups for experts that copy, and nothing reads them.
    wrong = [f".experts.{e}." for e in range(model.config.n_routed_experts, 64)]
    return {name: t for name, t in tensors.items() if not any(part in name for part in wrong)}


def _norms_everywhere(tensors: Tensors, model: PreTrainedModel) -> Tensors:
    # vLLM's dense layers have a norm after the MLP, too, and do not use it.
    size = model.config.hidden_size
    names = [f"model.layers.{i}.post_mlp_layernorm.weight" for i in range(len(model.model.layers))]
    return {name: torch.ones(size) for name in names} | tensors


def _renamed(*pairs: tuple[str, str]) -> Callable[[Tensors, PreTrainedModel], Tensors]:
    def rename(tensors: Tensors, model: PreTrainedModel) -> Tensors:
        for old, new in pairs:
            tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
        return tensors

    return rename


def _plain_linear_attention(tensors: Tensors, model: PreTrainedModel) -> Tensors:
    # Hugging Face's class cuts the joint convolution into three equal parts when it saves it.
    names = (
        ("attention_layer_norm", "input_layernorm"),
        ("feedforward_layer_norm", "post_attention_layernorm"),
    )
    tensors = _renamed(*names)(tensors, model)
    for i, layer in enumerate(model.model.layers):
        if hasattr(layer, "linear_attn"):
            mixer = layer.linear_attn
            sizes = [mixer.key_dim, mixer.key_dim, mixer.value_dim]
            parts = mixer.conv1d.weight.detach().split(sizes)
            for name, part in zip("qkv", parts, strict=True):
                path = f"model.layers.{i}.linear_attn.{name}_conv1d.weight"
                tensors[path] = part.contiguous()
    return tensors


_MLP = ("gate", "up", "down")


@dataclass(frozen=True)
class Format:
    """`change` makes the tensors that vLLM loads of those that Hugging Face's class saves."""

    said: str
    change: Callable[[Tensors, PreTrainedModel], Tensors]


FORMATS = {
    "AXK1ForCausalLM": Format(
        "dense layers have a post_mlp_layernorm (models/AXK1.py, AXK1DecoderLayer)",
        _norms_everywhere,
    ),
    "DbrxForCausalLM": Format(
        "experts stand under routed_experts, which is where vLLM has moved them and where its "
        "loader does not look (models/dbrx.py, load_weights)",
        _renamed((".experts.mlp.", ".experts.routed_experts.mlp.")),
    ),
    "HYV4ForCausalLM": Format(
        "names as in checkpoints of that family, which the class's own renaming, turned round, "
        "does not give (models/hy_v4/nvidia/model.py, load_weights)",
        _renamed(
            (".hc_pre.hc_head.", ".hc_head."),
            (".hc_pre.hc_attn_layer.", ".hc_attn_layer.hc_pre."),
            (".hc_pre.hc_mlp_layer.", ".hc_mlp_layer.hc_pre."),
            (".mlp.linear_gate.", ".mlp.gate_proj."),
            (".shared_experts.linear_gate.", ".shared_experts.gate_proj."),
        ),
    ),
    "KimiLinearForCausalLM": Format(
        "dense layers' names as in checkpoints of that family, which the class's own renaming, "
        "turned round, does not give (models/kimi_k3/nvidia/model.py, load_weights)",
        _renamed(*((f".block_sparse_moe.{name}_proj.", f".mlp.{name}_proj.") for name in _MLP)),
    ),
    "LongcatFlashForCausalLM": Format(
        "no weights of experts that copy (models/longcat_flash.py, load_weights)",
        _without_zero_experts,
    ),
    "OlmoHybridForCausalLM": Format(
        "norms and convolutions have the names and sizes that vLLM asks for "
        "(models/olmo_hybrid.py, hf_to_vllm_mapper)",
        _plain_linear_attention,
    ),
}
"""By architecture."""


def body(architecture: str) -> str:
    """The architecture that generates text with the same layers, of a classifier that has one."""
    return architecture.replace("ForSequenceClassification", "ForCausalLM")


def rename(path: Path, model: PreTrainedModel, architecture: str) -> None:
    """Rewrite a safetensors file as vLLM's loader of that architecture expects it."""
    if (name := body(architecture)) in FORMATS:
        tensors = FORMATS[name].change(load_file(path), model)
        save_file(tensors, path, metadata={"format": "pt"})


def adjust(model: PreTrainedModel, architecture: str) -> str:
    """Make Hugging Face's model compute what vLLM's does; what was changed in it and in the
    checkpoint, or an empty text."""
    said = []
    if seed():
        for change in WHERE_DRAWN:
            change(model)
    if (name := body(architecture)) in DIFFERENCES:
        DIFFERENCES[name].adjust(model)
        said.append(f"{CHANGED}, as in vLLM: {DIFFERENCES[name].said}")
    if name in FORMATS:
        said.append(f"checkpoint changed, for vLLM: {FORMATS[name].said}")
    return "; ".join(said)
