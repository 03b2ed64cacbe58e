# SPDX-License-Identifier: Apache-2.0
"""Whatever the scheduler does, vLLM gives the tokens and log-probabilities of Hugging Face."""

import copy
from collections.abc import Iterator

import pytest
import torch
from vllm import LLM, SamplingParams

from serving.checkpoints import MODELS, WITH_SLIDING_WINDOW
from serving.comparison import (
    LENGTHS,
    TOLERANCE,
    Answer,
    ask,
    assert_same,
    counter,
    largest_difference,
    prompts,
    reference_logprobs,
)


@pytest.fixture(scope="module", params=MODELS)
def reference(request, models):
    return models(request.param)


@pytest.fixture(scope="module")
def engine(reference, make_engine) -> Iterator[LLM]:
    """vLLM with its default settings, prefix caching included."""
    with make_engine(reference.name_or_path, disable_log_stats=False) as llm:
        yield llm


@pytest.fixture(scope="module")
def answers(engine) -> list[Answer]:
    return ask(engine, prompts())


def test_batched(reference, answers):
    assert_same(reference, answers)


def test_one_by_one(reference, engine):
    """The same prompts alone: and from the prefix cache, which the batch has filled."""
    before = counter(engine, "vllm:prefix_cache_hits")
    assert_same(reference, [ask(engine, [prompt])[0] for prompt in prompts()])
    assert counter(engine, "vllm:prefix_cache_hits") > before


def test_prefix_shared_within_a_batch(reference, engine):
    *_, prefix = prompts(seed=1)
    batch = [prefix[:64] + tail for tail in prompts(seed=2)[:6]]
    before = counter(engine, "vllm:prefix_cache_hits")
    assert_same(reference, ask(engine, batch[:1]) + ask(engine, batch[1:]))
    assert counter(engine, "vllm:prefix_cache_hits") > before


def test_prompt_logprobs(reference, engine):
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=10, detokenize=False)
    batch = prompts(seed=3)
    outputs = engine.generate(
        [{"prompt_token_ids": prompt} for prompt in batch], params, use_tqdm=False
    )
    for prompt, output in zip(batch, outputs, strict=True):
        expected = reference_logprobs(reference, prompt)
        assert output.prompt_logprobs[0] is None
        for position, found in enumerate(output.prompt_logprobs[1:]):
            assert prompt[position + 1] in found
            for token, entry in found.items():
                difference = entry.logprob - expected[position, token].item()
                assert abs(difference) <= TOLERANCE


def test_mutant_with_a_block_of_another_request(reference, engine, monkeypatch):
    """A mutant: it must miss the tolerance by 100 times."""
    from vllm_metal.attention import MetalAttentionMetadataBuilder

    build = MetalAttentionMetadataBuilder.build

    def swapped(self, *args, **kwargs):
        metadata = build(self, *args, **kwargs)
        if len(metadata.seq_lens) == len(LENGTHS):
            last_block = (metadata.seq_lens[-1] - 1) // self.kv_cache_spec.block_size
            table = metadata.block_table.clone()
            table[[-1, -2], last_block - 1] = metadata.block_table[[-2, -1], last_block - 2]
            metadata.block_table = table
        return metadata

    monkeypatch.setattr(MetalAttentionMetadataBuilder, "build", swapped)
    assert largest_difference(reference, ask(engine, prompts(seed=4))) > 100 * TOLERANCE


# ---- engines of their own: `engine` can't be used after these (see make_engine)


def test_chunked_prefill_without_prefix_cache(reference, make_engine):
    options = {"max_num_batched_tokens": 16, "enable_prefix_caching": False}
    with make_engine(reference.name_or_path, **options) as llm:
        assert_same(reference, ask(llm, prompts()))


def test_preemption(reference, make_engine):
    """A cache for one request of 144 tokens or so, and eight requests that need 560 together."""
    groups = len(set(getattr(reference.config, "layer_types", None) or ["full_attention"]))
    blocks = 13 if groups == 1 else 30
    options = {"num_gpu_blocks_override": blocks, "max_model_len": 144, "disable_log_stats": False}
    with make_engine(reference.name_or_path, **options) as llm:
        assert_same(reference, ask(llm, prompts(), num_tokens=40))
        assert counter(llm, "vllm:num_preemptions") > 0


# ---- more mutants: the proof that these tests can fail


def test_mutant_without_rope(reference, answers, monkeypatch):
    modeling = __import__(type(reference).__module__, fromlist=["modeling"])
    monkeypatch.setattr(modeling, "apply_rotary_pos_emb", lambda q, k, *args, **kwargs: (q, k))
    assert largest_difference(reference, answers) > 100 * TOLERANCE


def test_mutant_with_wrong_theta(reference, answers, monkeypatch):
    for name, buffer in reference.named_buffers():
        if name.endswith("inv_freq"):
            powers = torch.arange(buffer.numel()) / buffer.numel()
            monkeypatch.setattr(buffer, "data", 100.0**-powers)
    assert largest_difference(reference, answers) > 100 * TOLERANCE


def test_mutant_with_window_off_by_one(reference, answers, monkeypatch, request):
    if request.node.callspec.params["reference"] not in WITH_SLIDING_WINDOW:
        assert getattr(reference.config, "sliding_window", None) is None
        return
    monkeypatch.setattr(reference.config, "sliding_window", reference.config.sliding_window + 1)
    assert largest_difference(reference, answers) > 100 * TOLERANCE


def test_bfloat16(reference, make_engine):
    """Against float32, at most 1.5 times the error that PyTorch makes in bfloat16."""
    half = copy.deepcopy(reference).bfloat16()
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=10, detokenize=False)
    batch = prompts(seed=5)[2:]
    with make_engine(reference.name_or_path, dtype="bfloat16") as llm:
        requests = [{"prompt_token_ids": prompt} for prompt in batch]
        outputs = llm.generate(requests, params, use_tqdm=False)
    ours, theirs = [], []
    for prompt, output in zip(batch, outputs, strict=True):
        truth, rounded = reference_logprobs(reference, prompt), reference_logprobs(half, prompt)
        for position, found in enumerate(output.prompt_logprobs[1:]):
            for token, entry in found.items():
                ours.append(entry.logprob - truth[position, token].item())
                theirs.append((rounded - truth)[position, token].item())
    error, allowed = (torch.tensor(e).square().mean().sqrt().item() for e in (ours, theirs))
    assert 0 < error <= 1.5 * allowed
