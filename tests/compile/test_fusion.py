# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's own model code through the backend: every norm, rotary embedding, attention and
gated MLP of the module tree is one operator of the plan."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from vllm_metal.compile.backend import mlx
from vllm_metal.compile.reports import reports, reset_reports

_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_MODELS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": 4},
    "Phi3": {},
    "Gemma3Text": {
        "head_dim": 8,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
_DEFAULT = [(torch.float32, 2), (torch.bfloat16, 1)]
_CASES = [
    pytest.param(name, dtype, batch, marks=() if (dtype, batch) in _DEFAULT else pytest.mark.sweep)
    for name in _MODELS
    for dtype in (torch.float32, torch.bfloat16)
    for batch in (1, 2)
]


def _model(name: str, attention: str, dtype: torch.dtype) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(
        **_SIZES, **_MODELS[name], attn_implementation=attention
    )
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, f"{name}Model")(config)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
    return model.to(dtype).eval()


def _sites(model: nn.Module) -> dict[str, int]:
    """What the module tree holds of each kind; queries and keys are rotated by one operator."""
    kinds = [type(module).__name__ for module in model.modules()]
    count = lambda end: sum(kind.endswith(end) for kind in kinds)  # noqa: E731
    attention = count("Attention")
    return {
        "attention": attention,
        "gated_mlp": count("MLP"),
        "rms_norm": count("RMSNorm"),
        "rope": attention,
    }


@pytest.mark.parametrize(("name", "dtype", "batch"), _CASES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_site_of_the_module_tree_is_fused(
    name: str, dtype: torch.dtype, batch: int, attention: str
) -> None:
    torch.compiler.reset()
    reset_reports()
    model = _model(name, attention, dtype)
    tokens = torch.randint(1, 64, (batch, 9))
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).last_hidden_state
        compiled = torch.compile(model, backend=mlx, fullgraph=True)
        found = compiled(input_ids=tokens, use_cache=False).last_hidden_state
    (report,) = reports()
    assert report["fused"] == _sites(model)
    # The plan rounds less often than PyTorch does.
    tolerance = 2e-5 if dtype == torch.float32 else 0.15
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
