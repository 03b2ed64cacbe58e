# SPDX-License-Identifier: Apache-2.0
"""Whether vLLM's greedy tokens and log-probabilities are the reference's."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from vllm import LLM, SamplingParams

from zoo.case import TIE, TOLERANCE
from zoo.sizes import SIZES

LENGTHS = (1, 6, 17, 40, 70)
NUM_TOKENS = 8


@dataclass
class Comparison:
    """The outcome over all prompts."""

    largest_difference: float
    different_tokens: int

    @property
    def equal(self) -> bool:
        return self.largest_difference <= TOLERANCE and self.different_tokens == 0


def prompts(seed: int = 0) -> list[list[int]]:
    """Prompts of random tokens; together more than one step takes, so one of them is cut."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, SIZES.vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]


@dataclass
class Answer:
    """What vLLM said to a prompt: its greedy tokens, and the best log-probabilities at each."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[dict[int, float]]


def ask(
    llm: LLM, batch: list[list[int]] | None = None, num_tokens: int = NUM_TOKENS
) -> list[Answer]:
    """Greedy answers to prompts, to all by default, at once."""
    params = SamplingParams(
        temperature=0, max_tokens=num_tokens, logprobs=10, ignore_eos=True, detokenize=False
    )
    batch = prompts() if batch is None else batch
    requests = [{"prompt_token_ids": prompt} for prompt in batch]
    outputs = llm.generate(requests, params, use_tqdm=False)  # type: ignore[arg-type]
    return [
        Answer(
            prompt,
            list(output.outputs[0].token_ids),
            [{t: e.logprob for t, e in step.items()} for step in output.outputs[0].logprobs],
        )
        for prompt, output in zip(batch, outputs, strict=True)
    ]


def compare(model: PreTrainedModel, answers: list[Answer]) -> Comparison:
    """Each token judged given those before it, which is what generating them would do."""
    largest, different = 0.0, 0
    for answer in answers:
        expected = log_probabilities(model, answer.prompt, answer.tokens)
        expected = expected[len(answer.prompt) - 1 :]
        for row, token, found in zip(expected, answer.tokens, answer.logprobs, strict=False):
            different += int(row.max() - row[token] > TIE)
            difference = max(abs(logprob - row[t].item()) for t, logprob in found.items())
            # A NaN must not get lost in `max`.
            largest = max(largest, difference if difference == difference else float("inf"))
    return Comparison(largest, different)


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """float32[len(prompt + tokens), vocab_size]: row i comes after the first i + 1."""
    inputs = {"input_ids": torch.tensor([prompt + tokens])}
    if sees_whole_prompt(model.config):
        inputs["token_type_ids"] = torch.tensor([[1] * len(prompt) + [0] * len(tokens)])
    return model(**inputs, use_cache=False).logits[0].float().log_softmax(-1)


def sees_whole_prompt(config: PreTrainedConfig) -> bool:
    """Whether a prompt's tokens see those after them, so that no step can hold a part of it."""
    return bool(getattr(config, "prefix_lm", False))
