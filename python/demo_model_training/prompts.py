# SPDX-License-Identifier: Apache-2.0
"""Greedy continuations of the demo model, from Hugging Face in float32: the tests' truth.

In ``python/``:
``python -m demo_model_training.prompts vllm_metal/demo_model ../tests/data/demo_prompts.json``
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

MAX_TOKENS = 48
SMALLEST_MARGIN = 0.25
Messages = list[dict[str, str]]

COMPLETIONS = ["Return the", "Raise", "A context manager", "Read up to"]
CHATS: list[Messages] = [
    [{"role": "user", "content": "What does math.sqrt do?"}],
    [{"role": "user", "content": "What does time.sleep do?"}],
    [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "What does list.append do?"},
    ],
    [
        {"role": "user", "content": "Thank you"},
        {"role": "assistant", "content": "You are welcome."},
        {"role": "user", "content": "What does sorted do?"},
    ],
]


@dataclass(frozen=True)
class Continuation:
    """A prompt and what the model says to it greedily.

    `prompt` is text for /v1/completions or messages for /v1/chat/completions. `margin` is the
    smallest gap between the best and the second best logit on the way: the room that another
    implementation's rounding has.
    """

    kind: str
    prompt: str | Messages
    max_tokens: int
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str
    margin: float


def load(directory: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The Hugging Face model and tokenizer in `directory`."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return model, AutoTokenizer.from_pretrained(directory)


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str | Messages) -> list[int]:
    """Token ids of a completion's prompt or of a chat through the chat template."""
    if not isinstance(prompt, str):
        prompt = str(
            tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        )
    return list(tokenizer(prompt, add_special_tokens=False)["input_ids"])


def continue_greedily(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    max_tokens: int = MAX_TOKENS,
) -> Continuation:
    """Continue `prompt` by the best token until the end token or `max_tokens`."""
    prompt_token_ids = encode(tokenizer, prompt)
    output: Any = model.generate(  # type: ignore[operator]
        torch.tensor([prompt_token_ids]),
        attention_mask=torch.ones(1, len(prompt_token_ids), dtype=torch.long),
        max_new_tokens=max_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    token_ids = output.sequences[0, len(prompt_token_ids) :].tolist()
    best = torch.cat(output.logits).float().topk(2).values
    return Continuation(
        kind="completion" if isinstance(prompt, str) else "chat",
        prompt=prompt,
        max_tokens=max_tokens,
        prompt_token_ids=prompt_token_ids,
        token_ids=token_ids,
        text=str(tokenizer.decode(token_ids, skip_special_tokens=True)),
        finish_reason="stop" if token_ids[-1] == tokenizer.eos_token_id else "length",
        margin=round((best[:, 0] - best[:, 1]).min().item(), 3),
    )


def demo_prompts() -> list[str | Messages]:
    """The prompts of the stored file, completions first."""
    return [*COMPLETIONS, *CHATS]


def write_prompts(directory: Path, path: Path) -> list[Continuation]:
    """Write every prompt's continuation to `path`; raise ValueError where the margin is small."""
    model, tokenizer = load(directory, torch.float32)
    continuations = [continue_greedily(model, tokenizer, prompt) for prompt in demo_prompts()]
    for continuation in continuations:
        if continuation.margin < SMALLEST_MARGIN:
            raise ValueError(
                f"{continuation.prompt!r} has a margin of {continuation.margin},"
                f" below {SMALLEST_MARGIN}: choose another prompt"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"dtype": "float32", "prompts": [asdict(c) for c in continuations]}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return continuations


if __name__ == "__main__":
    for written in write_prompts(Path(sys.argv[1]), Path(sys.argv[2])):
        print(written.margin, written.finish_reason, repr(written.prompt), repr(written.text))
