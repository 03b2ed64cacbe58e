# SPDX-License-Identifier: Apache-2.0
"""Run prompts through vLLM; compare tokens and log-probabilities with Hugging Face's model."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from vllm import LLM, SamplingParams
from vllm.v1.metrics.reader import Counter

from serving.checkpoints import VOCAB_SIZE

TOLERANCE = 1e-4
"""Largest difference of a top-10 log-probability in float32."""

LENGTHS = (1, 2, 7, 16, 17, 33, 64, 100)
NUM_TOKENS = 16


def counter(llm: LLM, name: str) -> int:
    """What vLLM counted since the engine began."""
    return sum(
        metric.value
        for metric in llm.get_metrics()
        if isinstance(metric, Counter) and metric.name == name
    )


def prompts(seed: int = 0) -> list[list[int]]:
    """Eight prompts of 1 to 100 random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in LENGTHS]


@dataclass
class Answer:
    """What vLLM said to a prompt: its greedy tokens, and the ten best log-probabilities at each."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[dict[int, float]]


def ask(llm: LLM, batch: list[list[int]], num_tokens: int = NUM_TOKENS) -> list[Answer]:
    """Greedy answers to all prompts, submitted at once."""
    params = SamplingParams(
        temperature=0, max_tokens=num_tokens, logprobs=10, ignore_eos=True, detokenize=False
    )
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in batch], params, use_tqdm=False
    )
    return [
        Answer(
            prompt,
            list(output.outputs[0].token_ids),
            [
                {token: entry.logprob for token, entry in step.items()}
                for step in output.outputs[0].logprobs
            ],
        )
        for prompt, output in zip(batch, outputs, strict=True)
    ]


@torch.no_grad()
def reference_logprobs(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """float32[len(tokens), vocab_size]: row i is the distribution after tokens[: i + 1]."""
    return model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)


def largest_difference(model: PreTrainedModel, answers: list[Answer]) -> float:
    """Largest difference of any log-probability that vLLM returned from the reference's."""
    return max(
        _difference(reference_logprobs(model, answer.prompt + answer.tokens), answer)
        for answer in answers
    )


def _difference(expected: torch.Tensor, answer: Answer) -> float:
    return max(
        abs(logprob - expected[len(answer.prompt) + step - 1, token].item())
        for step, found in enumerate(answer.logprobs)
        for token, logprob in found.items()
    )


def assert_same(model: PreTrainedModel, answers: list[Answer]) -> None:
    """Every greedy token is the reference's, and every log-probability within TOLERANCE of it.

    Each token is checked given those before it, which is what generating them would check.
    """
    for answer in answers:
        expected = reference_logprobs(model, answer.prompt + answer.tokens)
        greedy = expected[len(answer.prompt) - 1 : -1].argmax(-1).tolist()
        assert answer.tokens == greedy, f"prompt of {len(answer.prompt)} tokens"
        assert all(len(step) >= 10 for step in answer.logprobs)
        assert _difference(expected, answer) <= TOLERANCE, f"prompt of {len(answer.prompt)} tokens"
