# SPDX-License-Identifier: Apache-2.0
"""One model of each kind of attention and state answers the same in every manner of serving."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from zoo.case import TOLERANCE, Case, Outcome, Part
from zoo.manners import MANNERS, Served, serve
from zoo.pool import Pool

KINDS = {
    "plain": "LlamaForCausalLM",
    "window": "MistralForCausalLM",
    "soft cap": "Gemma2ForCausalLM",
    "sinks": "GptOssForCausalLM",
    "alibi": "BloomForCausalLM",
    "chunked local": "Llama4ForCausalLM",
    "shared caches": "Gemma3nForCausalLM",
    "latent": "DeepseekV3ForCausalLM",
    "selected keys": "DeepseekV32ForCausalLM",
    "experts": "Qwen3MoeForCausalLM",
    "Mamba-1": "MambaForCausalLM",
    "Mamba-2": "Mamba2ForCausalLM",
    "Mamba-1 and attention": "JambaForCausalLM",
    "Mamba-2 and attention": "FalconH1ForCausalLM",
    "short convolution": "Lfm2MoeForCausalLM",
    "gated delta net": "Qwen3NextForCausalLM",
    "Kimi delta attention": "BailingMoeV3ForCausalLM",
    "lightning attention": "BailingMoeV2_5ForCausalLM",
}
IN_VLLM_ALONE = ("Kimi delta attention", "lightning attention")


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool() as pool:
        yield pool


def served(pool: Pool, kind: str, manner: str) -> Served:
    case = Case(KINDS[kind], Part.VLLM if kind in IN_VLLM_ALONE else Part.BOTH)
    with tempfile.TemporaryDirectory(prefix="manners-") as directory:
        return pool.call(serve, case, Path(directory), manner)


SAMPLE = ("gated delta net",)
"""What runs by default, beside `serving/test_state.py`; the others have the marker `sweep`."""


@pytest.mark.parametrize(
    "kind",
    [kind if kind in SAMPLE else pytest.param(kind, marks=pytest.mark.sweep) for kind in KINDS],
)
def test_the_manner_of_serving_changes_no_answer(pool: Pool, kind: str) -> None:
    case = Case(KINDS[kind])
    expected = Outcome(case, answers=served(pool, kind, "one by one").answers)
    assert expected.answers and all(map(len, expected.answers))
    for manner in MANNERS.keys() - {"one by one"}:
        found = served(pool, kind, manner)
        apart = Outcome(case, answers=found.answers).apart_from(expected)
        assert apart <= TOLERANCE, f"{manner}: {apart}"
        assert found.preemptions > 0 or manner != "preempted"
        if manner == "cached" and found.caches_prefixes:  # vLLM has no such cache for some states
            assert found.cached_tokens > 0
