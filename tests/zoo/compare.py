# SPDX-License-Identifier: Apache-2.0
"""Whether vLLM's greedy tokens and log-probabilities are the reference's."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from vllm import LLM, SamplingParams

from zoo.case import TOLERANCE
from zoo.shrink import VOCAB_SIZE

TIE = 1e-3
"""Tokens whose log-probabilities are this near may change places."""
LENGTHS = (1, 6, 17, 40, 70)
NUM_TOKENS = 8


@dataclass
class Comparison:
    """The outcome over all prompts."""

    largest_difference: float
    different_tokens: int
    answers: list[list[dict[int, float]]]
    """Log-probabilities by prompt, step and token."""

    @property
    def equal(self) -> bool:
        return self.largest_difference <= TOLERANCE and self.different_tokens == 0


def prompts(seed: int = 0) -> list[list[int]]:
    """Prompts of random tokens; together more than one step takes, so one of them is cut."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist() for n in LENGTHS]


def compare(model: PreTrainedModel, llm: LLM) -> Comparison:
    """Greedy answers to all prompts at once, each token judged given those before it."""
    batch = prompts()
    params = SamplingParams(
        temperature=0, max_tokens=NUM_TOKENS, logprobs=10, ignore_eos=True, detokenize=False
    )
    requests = [{"prompt_token_ids": prompt} for prompt in batch]
    outputs = llm.generate(requests, params, use_tqdm=False)  # type: ignore[arg-type]
    largest, different = 0.0, 0
    answers = []
    for prompt, output in zip(batch, outputs, strict=True):
        answer = output.outputs[0]
        answers.append([{t: e.logprob for t, e in step.items()} for step in answer.logprobs])
        expected = log_probabilities(model, prompt + list(answer.token_ids))[len(prompt) - 1 :]
        for row, token, found in zip(expected, answer.token_ids, answer.logprobs, strict=False):
            different += int(row.max() - row[token] > TIE)
            difference = max(abs(e.logprob - row[t].item()) for t, e in found.items())
            # A NaN must not get lost in `max`.
            largest = max(largest, difference if difference == difference else float("inf"))
    return Comparison(largest, different, answers)


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """float32[len(tokens), vocab_size]: row i is the distribution after tokens[: i + 1]."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0].float().log_softmax(-1)
