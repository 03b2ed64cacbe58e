# SPDX-License-Identifier: Apache-2.0
"""Models with recurrent states or latent attention against Hugging Face's: together, in chunks,
preempted, and with cached prefixes."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel

from serving.comparison import TOLERANCE, ask, assert_same, largest_difference, prompts
from serving.conftest import MakeEngine

MODELS = ("deepseek3", "deepseek32", "mamba2", "jamba", "falcon_h1", "lfm2")
"""Latent attention; the same of selected keys; Mamba-2 alone; Mamba with attention; both in one
layer; short convolution."""

Models = Callable[[str], PreTrainedModel]
_MEMORY = {"kv_cache_memory_bytes": 64 << 20}


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_in_chunks_equals_the_reference(
    name: str, models: Models, make_engine: MakeEngine
) -> None:
    model = models(name)
    options = {"max_num_batched_tokens": 16, "enable_prefix_caching": False}
    with make_engine(model.name_or_path, **options, **_MEMORY) as llm:
        assert_same(model, ask(llm, prompts()))


def test_a_selection_of_keys_matters(models: Models, make_engine: MakeEngine) -> None:
    """A mutant that attends to all keys, and requests one by one."""
    model = models("deepseek32")
    options = {"enable_prefix_caching": False}
    with make_engine(model.name_or_path, **options, **_MEMORY) as llm:
        answers = [ask(llm, [prompt])[0] for prompt in prompts()]
    assert_same(model, answers)
    for layer in model.model.layers:
        layer.self_attn.indexer.index_topk = 1000
    try:
        assert largest_difference(model, answers) > 100 * TOLERANCE
    finally:
        for layer in model.model.layers:
            layer.self_attn.indexer.index_topk = model.config.index_topk


@pytest.mark.parametrize("name", ["deepseek3", "deepseek32", "mamba2"])
def test_preempted_requests_equal_the_reference(
    name: str, models: Models, make_engine: MakeEngine
) -> None:
    model = models(name)
    options = {"num_gpu_blocks_override": 16, "max_model_len": 128, "enable_prefix_caching": False}
    with make_engine(model.name_or_path, **options, **_MEMORY) as llm:
        assert_same(model, ask(llm, prompts()))


@pytest.mark.parametrize("name", ["deepseek3", "deepseek32", "mamba2"])
def test_cached_prefixes_equal_the_reference(
    name: str, models: Models, make_engine: MakeEngine
) -> None:
    model = models(name)
    options = {"enable_prefix_caching": True, "max_num_batched_tokens": 64}
    with make_engine(model.name_or_path, **options, **_MEMORY) as llm:
        for _ in ("cold", "warm"):
            assert_same(model, ask(llm, prompts()))
