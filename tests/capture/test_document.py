# SPDX-License-Identifier: Apache-2.0
"""The document itself: what stays whole, what a layer says, the same bytes every time."""

import collections
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig

from vllm_metal.capture import Interpreter, capture

from .conftest import Build
from .models import write_config

_IN_A_PROCESS = """
import hashlib, sys
from vllm_metal.capture import capture, capture_config, construct, single_process
vllm_config = capture_config(sys.argv[1], dtype="float32")
with single_process(vllm_config):
    document = capture(construct(vllm_config), vllm_config).document
print("sha256", hashlib.sha256(document).hexdigest())
"""


def _targets(document: bytes) -> collections.Counter[str]:
    graphs = json.loads(document)["graphs"]
    return collections.Counter(
        node["target"] for graph in graphs for node in graph["nodes"] if node["op"] == "call"
    )


def test_another_process_writes_the_same_bytes(build: Build, tmp_path: Path) -> None:
    document = capture(*build("gemma3_text")).document
    path = write_config("gemma3_text", tmp_path / "again")
    result = subprocess.run(
        [sys.executable, "-c", _IN_A_PROCESS, str(path)],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"sha256 {hashlib.sha256(document).hexdigest()}" in result.stdout, result.stderr[-2000:]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ir_operators_whole_and_decomposed(build: Build, dtype: str) -> None:
    model, vllm_config = build("qwen3", dtype)
    whole = _targets(capture(model, vllm_config, ir_ops="whole").document)
    decomposed = _targets(capture(model, vllm_config, ir_ops="decomposed").document)
    # Per layer a norm of q and of k, and two over the residual; one before the first layer.
    assert whole["vllm_ir.rms_norm.default"] == 5
    assert whole["vllm_ir.fused_add_rms_norm.maybe_inplace"] == 4
    assert not any(target.startswith("vllm_ir.") for target in decomposed)
    assert decomposed["aten.rsqrt.default"] == 9
    for targets in (whole, decomposed):
        assert targets["vllm.unified_attention_with_output.default"] == 2


def test_layers_carry_the_attention_contract(build: Build) -> None:
    captured = capture(*build("gemma2"))
    assert captured.layers["model.layers.0.self_attn.attn"] == {
        "kind": "attention",
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_size": 16,
        "head_size_v": 16,
        "value_in_key": False,
        "scale": {"float": "0.25"},
        "sliding_window": 8,
        "logits_soft_cap": {"float": "50.0"},
        "alibi_slopes": None,
        "use_alibi_sqrt": False,
        "sinks": None,
        "attn_type": "decoder",
        "kv_sharing_target": None,
        "sparse": False,
    }
    assert captured.layers["model.layers.1.self_attn.attn"]["sliding_window"] is None


def test_alibi_slopes(build: Build) -> None:
    slopes = capture(*build("bloom")).layers["transformer.h.0.self_attention.attn"]["alibi_slopes"]
    assert [float(slope["float"]) for slope in slopes] == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]


def test_nodes_say_where_they_come_from(build: Build) -> None:
    graphs = json.loads(capture(*build("llama")).document)["graphs"]
    calls = [node for graph in graphs for node in graph["nodes"] if node["op"] == "call"]
    assert all(node["module"] and node["source"].startswith("vllm/") for node in calls)
    silu = [node for node in calls if node["target"] == "aten.silu.default"]
    assert [node["module"] for node in silu] == [f"model.layers.{i}.mlp.act_fn" for i in (0, 1)]
    assert all("layers/activation.py:" in node["source"] for node in silu)


def test_every_argument_is_data(build: Build) -> None:
    """Nothing was written as a Python repr, the last resort of the encoder."""
    for name in ("gemma3_text", "cohere", "glm"):
        assert b'{"other":' not in capture(*build(name)).document


def test_a_config_under_another_name(tmp_path: Path) -> None:
    from vllm_metal.capture import capture_config

    path = write_config("llama", tmp_path).rename(tmp_path / "my-llama.json")
    vllm_config = capture_config(path, dtype="bfloat16")
    assert vllm_config.model_config.architecture == "LlamaForCausalLM"
    assert vllm_config.model_config.dtype == torch.bfloat16


def test_an_unknown_format_is_refused() -> None:
    document = json.dumps({"format": "vllm-metal/fx", "version": 2, "graphs": [], "aliases": {}})
    with pytest.raises(ValueError, match=r"version 2; this build reads vllm-metal/fx version 1"):
        Interpreter(document.encode(), {})


def test_an_input_of_another_length_is_refused(build: Build) -> None:
    captured = capture(*build("llama"))
    tensors: dict[str, Any] = {**captured.buffers}
    for path, (dtype, shape) in captured.parameters.items():
        tensors[path] = torch.zeros(shape, dtype=dtype)
    inputs = {"input_ids": torch.zeros(3, dtype=torch.int32), "positions": torch.arange(4)}
    with pytest.raises(ValueError, match=r"positions has shape \[4\]"):
        Interpreter(captured.document, tensors).run("backbone", **inputs)


def test_the_same_model_configured_twice(
    configure: Callable[..., VllmConfig], build: Build
) -> None:
    first = capture(*build("mistral")).document
    assert capture(*build("mistral")).document == first
