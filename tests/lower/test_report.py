# SPDX-License-Identifier: Apache-2.0
"""What lowering finds, against what the model consists of."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn
from vllm.model_executor.layers.activation import GeluAndMul, SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

from vllm_metal.lowered import lower

MODELS = [
    "llama",
    "llama_scaled_rope",
    "qwen2",
    "qwen3",
    "mistral",
    "phi3",
    "gemma2",
    "gemma3_text",
]


def count(model: nn.Module, *kinds: type) -> int:
    """Places of such modules in the module tree: vLLM shares one rotary embedding among layers."""
    modules = model.named_modules(remove_duplicate=False)
    return sum(isinstance(module, kinds) for _, module in modules)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_every_module_is_fused_in_both_captures(
    build: Callable[..., Any], name: str, dtype: str
) -> None:
    model, vllm_config = build(name, dtype)
    whole = lower(model, vllm_config, ir_ops="whole")
    assert whole.report["fused"] == {
        "rms_norm": count(model, RMSNorm, GemmaRMSNorm),
        "rope": count(model, RotaryEmbeddingBase),
        "attention": count(model, Attention),
        "gated_mlp": count(model, SiluAndMul, GeluAndMul),
    }
    assert whole.report["fallback"] == []
    decomposed = lower(model, vllm_config, ir_ops="decomposed")
    assert decomposed.plan.to_bytes() == whole.plan.to_bytes()


def test_identical_layers_share_a_region(build: Callable[..., Any]) -> None:
    model, vllm_config = build("gemma3_text")
    report = lower(model, vllm_config).report
    layers = count(model, Attention)
    # The first follows the embedding, the last precedes the final norm; the head is a graph.
    assert layers > 2
    assert report["regions"] == {"total": layers + 2, "unique": 4}
