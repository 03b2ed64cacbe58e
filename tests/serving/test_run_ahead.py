# SPDX-License-Identifier: Apache-2.0
"""Asynchronous scheduling changes no token: requests of all kinds, that come, go, and are
preempted."""

import random
from collections.abc import Callable

import pytest
from transformers import PreTrainedModel
from vllm import LLM, SamplingParams

from serving.comparison import counter
from serving.conftest import MakeEngine

Models = Callable[[str], PreTrainedModel]
VOCABULARY = range(10, 100)
NUM_REQUESTS = 50


def params(generator: random.Random, index: int) -> SamplingParams:
    """Most want nothing but the most likely token, which is what is sampled ahead."""
    kinds: list[dict[str, object]] = [
        {"logprobs": 2},
        {"presence_penalty": 0.7, "frequency_penalty": 0.3},
        {"min_tokens": 5, "stop_token_ids": [20, 21, 22]},
        {"logit_bias": {30: 4.0}},
        {"temperature": 0.8, "seed": index, "top_p": 0.9},
        {"temperature": 1.2, "top_k": 20, "min_p": 0.01},
        {"prompt_logprobs": 1},
    ]
    kind = kinds[index // 5 % len(kinds)] if index % 5 == 0 else {}
    length = generator.randrange(5, 40)
    return SamplingParams(
        **{"temperature": 0.0, "max_tokens": length, "ignore_eos": index % 2 == 0} | kind
    )


def answers(llm: LLM) -> list[list[int]]:
    """Two waves: of the second, some find their prefix in the cache."""
    generator = random.Random(0)
    prompts = [
        [generator.choice(VOCABULARY) for _ in range(generator.randrange(1, 60))]
        for _ in range(NUM_REQUESTS // 2)
    ]
    found = []
    for wave in (prompts, [[*prompt, 11] for prompt in prompts]):
        asked = [params(generator, len(found) + index) for index in range(len(wave))]
        requests = [{"prompt_token_ids": prompt} for prompt in wave]
        outputs = llm.generate(requests, asked, use_tqdm=False)
        found += [list(output.outputs[0].token_ids) for output in outputs]
    return found


@pytest.mark.parametrize("path", ["lowered"], indirect=True)
@pytest.mark.parametrize("name", ["llama", "gemma3", "falcon_h1", "deepseek32"])
def test_the_same_tokens_of_fifty_mixed_requests(
    name: str, models: Models, make_engine: MakeEngine
) -> None:
    """Attention; of two kinds; with Mamba in one layer; latent of selected keys."""
    found = []
    for async_scheduling in (True, False):
        options = {"max_model_len": 112, "max_num_batched_tokens": 64}
        with make_engine(
            models(name).name_or_path,
            async_scheduling=async_scheduling,
            kv_cache_memory_bytes=64 << 20,
            num_gpu_blocks_override=24,
            disable_log_stats=False,
            **options,
        ) as llm:
            config = llm.llm_engine.vllm_config.scheduler_config
            assert config.async_scheduling == async_scheduling
            found.append(answers(llm))
            assert counter(llm, "vllm:num_preemptions") > 0
    assert found[0] == found[1]
    assert len(set(map(tuple, found[0]))) > NUM_REQUESTS // 2
