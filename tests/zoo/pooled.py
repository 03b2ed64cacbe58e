# SPDX-License-Identifier: Apache-2.0
"""Models that pool: embeddings and scores, against Hugging Face's hidden states and logits."""

import torch
from transformers import PreTrainedModel
from vllm import LLM, PoolingParams

from zoo.compare import Answer, Comparison, prompts

TASKS = {
    "SequenceClassification": "classify",
    "TokenClassification": "token_classify",
    "BertForMaskedLM": "token_classify",  # of RobertaForMaskedLM vLLM takes the body alone
}
"""By the end of an architecture's name; of all others hidden states are asked for."""


def task(architecture: str) -> str:
    """vLLM's name of what the model is asked for."""
    return next((TASKS[end] for end in TASKS if architecture.endswith(end)), "token_embed")


def ask(llm: LLM, task: str) -> list[Answer]:
    """To each prompt the numbers that its model gives, by row and place."""
    params = PoolingParams(use_activation=False)
    requests = [{"prompt_token_ids": prompt} for prompt in prompts()]
    outputs = llm.encode(requests, params, pooling_task=task, use_tqdm=False)  # type: ignore[arg-type]
    found = [output.outputs.data for output in outputs]
    return [
        Answer(prompt, [], [dict(enumerate(row)) for row in torch.atleast_2d(rows).tolist()])
        for prompt, rows in zip(prompts(), found, strict=True)
    ]


@torch.no_grad()
def compare(model: PreTrainedModel, answers: list[Answer]) -> Comparison:
    """With what of Hugging Face's model has that shape: its logits, or its last hidden states."""
    largest = 0.0
    for answer in answers:
        found = torch.tensor([list(row.values()) for row in answer.logprobs])
        expected = next((e for e in outputs(model, answer.prompt) if e.shape == found.shape), None)
        if expected is None:
            raise ValueError(f"Hugging Face's model gives nothing of shape {list(found.shape)}")
        apart = (found - expected).abs().max().item()
        # A NaN must not get lost in `max`.
        largest = max(largest, apart if apart == apart else float("inf"))
    return Comparison(largest, 0)


@torch.no_grad()
def outputs(model: PreTrainedModel, prompt: list[int]) -> list[torch.Tensor]:
    """float32[rows, size] each: of a prompt's end, or of all its tokens."""
    inputs = {"input_ids": torch.tensor([prompt])}
    found = [model.base_model(**inputs).last_hidden_state[0]]
    logits = getattr(model(**inputs), "logits", None)
    return found if logits is None else [torch.atleast_2d(logits[0]), *found]
