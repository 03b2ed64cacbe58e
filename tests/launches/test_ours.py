# SPDX-License-Identifier: Apache-2.0
"""What a layer of ours launches: the report's count against the graph of a decode step and the
table of what primitives launch on Metal."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benches"))
import decode_launches
import mlx_lm_launches

MODELS = ["llama", "mistral", "qwen3"]
OURS = {
    "Matmul": 4,
    "Scatter": 1,
    "gated_activation": 1,
    "paged_attention_decode": 1,
    "qk_norm_rope": 1,
    "rms_norm": 2,
}
# What the report calls them.
NAMES = {"Matmul": "matmul", "Scatter": "cache_write"}


@pytest.mark.parametrize("name", MODELS)
def test_a_layer_launches_ten_kernels(name: str) -> None:
    found = decode_launches.layer(name)
    launched = {of: launches for of, (_, launches) in found.traced.items() if launches}
    assert launched == OURS
    assert found.total == 10
    assert found.reported == {NAMES.get(of, of): n for of, n in OURS.items()}
    theirs = sum(launches for _, launches in mlx_lm_launches.layer(name).values())
    assert found.total < theirs


def test_a_long_context_is_one_launch_more() -> None:
    found = decode_launches.layer("qwen3", context=2000)
    launched = {of: launches for of, (_, launches) in found.traced.items() if launches}
    assert launched == {**OURS, "paged_attention_reduce": 1}


@pytest.mark.parametrize(("name", "dtype"), [("llama", "float32"), ("qwen3", "bfloat16")])
def test_the_report_counts_the_references_as_their_graph_has_them(name: str, dtype: str) -> None:
    found = decode_launches.layer(name, dtype, kernels=False)
    assert found.total == sum(found.reported.values())


def test_the_cache_is_not_gathered_by_kernels() -> None:
    assert "Gather" in decode_launches.layer("llama", kernels=False).traced
    assert "Gather" not in decode_launches.layer("llama").traced


def test_prompts_take_the_kernel_where_it_moves_less() -> None:
    """As `prompts` of the report says: the end of a long prompt, and a whole one."""
    kernel, reference = "paged_attention_prefill", "ScaledDotProductAttention"
    end = decode_launches.layer("qwen3", context=2048, rows=8).traced
    assert end[kernel][0] == 1 and reference not in end and "Gather" not in end
    whole = decode_launches.layer("qwen3", rows=512).traced
    assert whole[reference][0] == 1 and kernel not in whole and whole["Gather"][0] == 1
    without = decode_launches.layer("qwen3", context=2048, kernels=False, rows=8).traced
    assert without[reference][0] == 1
