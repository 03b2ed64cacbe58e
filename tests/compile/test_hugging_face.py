# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's own models, tiny and random, on MLX against PyTorch, with sizes that change."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from vllm_metal.compile import reports

TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}


def ids(batch: int, length: int) -> dict[str, Any]:
    return {"input_ids": torch.randint(0, 128, (batch, length))}


def causal(batch: int, length: int) -> dict[str, Any]:
    return {**ids(batch, length), "use_cache": False}


def padded(batch: int, length: int) -> dict[str, Any]:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, length - 2 :] = 0
    return {**ids(batch, length), "attention_mask": mask}


def image(batch: int, length: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(batch, 3, 32, 32)}


def spectrogram(batch: int, length: int) -> dict[str, Any]:
    return {"input_features": torch.randn(batch, 16, 40)}


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED))


def qwen3() -> nn.Module:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**GROUPED, head_dim=16))


def gemma3() -> nn.Module:
    config = transformers.Gemma3TextConfig(
        **{**GROUPED, "num_hidden_layers": 2},
        head_dim=16,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    )
    return transformers.Gemma3ForCausalLM(config)


def bert() -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(**TEXT))


def vit() -> nn.Module:
    sizes = {key: TEXT[key] for key in TEXT if key not in ("vocab_size", "max_position_embeddings")}
    return transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32, patch_size=8))


def whisper_encoder() -> nn.Module:
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=1,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        num_mel_bins=16,
        max_source_positions=20,
    )
    return transformers.WhisperModel(config).get_encoder()


def t5_encoder() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4
    )
    return transformers.T5EncoderModel(config)


MODELS: dict[Callable[[], nn.Module], Callable[[int, int], dict[str, Any]]] = {
    llama: causal,
    qwen3: causal,
    gemma3: causal,
    bert: padded,
    vit: image,
    whisper_encoder: spectrogram,
    t5_encoder: padded,
}


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_a_model_gives_what_it_gives_in_pytorch(build: Callable[[], nn.Module]) -> None:
    model, inputs = build().eval(), MODELS[build]
    run = torch.compile(model, backend="mlx", dynamic=True)
    graphs = set()
    with torch.no_grad():
        for batch, length in ((2, 9), (3, 12), (4, 7)):
            given = inputs(batch, length)
            torch.testing.assert_close(run(**given)[0], model(**given)[0], atol=1e-4, rtol=1e-4)
            graphs.add(len(reports()))
    assert len(graphs) == 1, "a new size was compiled"
    assert all("refused" not in report for report in reports())


def test_a_model_generates_the_same_text() -> None:
    model = llama().eval()
    prompt = torch.randint(0, 128, (1, 6))
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompt, **options)
    model.forward = torch.compile(model.forward, backend="mlx", dynamic=True)
    assert torch.equal(model.generate(prompt, **options), expected)
