# SPDX-License-Identifier: Apache-2.0
"""The embedded demo model: size, architecture, tokenizer and text."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, Qwen3ForCausalLM

from demo_model_training import prompts
from demo_model_training.corpus import Corpus, collect

ROOT = Path(__file__).resolve().parents[2]
DEMO_MODEL = ROOT / "python" / "vllm_metal" / "demo_model"
STORED = json.loads((ROOT / "tests" / "data" / "demo_prompts.json").read_text(encoding="utf-8"))
WELL_KNOWN = ["os.path.join", "math.sqrt", "str.upper", "list.append", "len", "random.choice"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO_MODEL)


@pytest.fixture(scope="module")
def float32_model() -> Any:
    return prompts.load(DEMO_MODEL, torch.float32)[0]


@pytest.fixture(scope="module")
def bfloat16_model() -> Any:
    return prompts.load(DEMO_MODEL, torch.bfloat16)[0]


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]{2,}", text.lower())


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return collect()


@pytest.fixture(scope="module")
def corpus_words(corpus: Corpus) -> set[str]:
    return set(words_of("\n".join(corpus.texts())))


def test_the_directory_holds_at_most_8_megabytes() -> None:
    files = sorted(DEMO_MODEL.iterdir())
    assert [file.name for file in files] == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sum(file.stat().st_size for file in files) <= 8_000_000


def test_architecture() -> None:
    config = AutoConfig.from_pretrained(DEMO_MODEL)
    assert config.architectures == ["Qwen3ForCausalLM"]
    assert config.dtype == torch.bfloat16
    assert config.tie_word_embeddings
    assert config.num_attention_heads == 2 * config.num_key_value_heads


def test_end_tokens_agree_and_nothing_is_sampled_by_default(tokenizer: Any) -> None:
    config = AutoConfig.from_pretrained(DEMO_MODEL)
    generation = GenerationConfig.from_pretrained(DEMO_MODEL)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokenizer.eos_token_id == config.eos_token_id == generation.eos_token_id == end
    stored = json.loads((DEMO_MODEL / "generation_config.json").read_text(encoding="utf-8"))
    sampling = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens"}
    assert sampling.isdisjoint(stored)


@pytest.mark.parametrize(
    "text",
    [
        "def join(a, *p):\n    return a\n",
        "Grüße, 世界 🐍",
        "  two  spaces\tand a tab ",
        "don't , stop .",
        "".join(map(chr, range(32, 127))),
    ],
)
def test_tokenizer_round_trip(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_chat_template(tokenizer: Any) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "What does len do?"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|system|>\nBe brief.\n<|user|>\nHello\n<|assistant|>\nHello!<|endoftext|>"
        "<|user|>\nWhat does len do?\n<|assistant|>\n"
    )
    # Each mark of a turn is one token, and a text without special tokens shows none of them.
    ids = tokenizer(text)["input_ids"]
    assert sum(id in tokenizer.added_tokens_decoder for id in ids) == 6
    assert "<|" not in tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("stored", STORED["prompts"], ids=lambda stored: str(stored["prompt"]))
def test_greedy_text(
    float32_model: Any, bfloat16_model: Any, tokenizer: Any, stored: dict[str, Any]
) -> None:
    """Stored text is Hugging Face's, and rounding in bfloat16 does not change it."""
    found = prompts.continue_greedily(
        float32_model, tokenizer, stored["prompt"], stored["max_tokens"]
    )
    assert asdict(found) | {"margin": None} == stored | {"margin": None}
    assert found.margin == pytest.approx(stored["margin"], abs=0.01)
    rounded = prompts.continue_greedily(
        bfloat16_model, tokenizer, stored["prompt"], stored["max_tokens"]
    )
    assert rounded.text == stored["text"]


def test_stored_prompts_cover_both_kinds_and_both_ends() -> None:
    kinds = [stored["kind"] for stored in STORED["prompts"]]
    assert kinds.count("completion") == 4 and kinds.count("chat") == 4
    ends = {(stored["kind"], stored["finish_reason"]) for stored in STORED["prompts"]}
    assert {("completion", "stop"), ("chat", "stop")} <= ends
    assert min(stored["margin"] for stored in STORED["prompts"]) >= prompts.SMALLEST_MARGIN


@pytest.mark.parametrize("start", ["Return the", "Raise", "The", "If the", "This class"])
def test_text_is_words_of_the_documentation(
    float32_model: Any, tokenizer: Any, corpus_words: set[str], start: str
) -> None:
    words = words_of(prompts.continue_greedily(float32_model, tokenizer, start).text)
    assert len(words) >= 3
    assert sum(word in corpus_words for word in words) > 0.9 * len(words)
    assert len(set(words)) >= 0.4 * len(words)


def test_an_untrained_model_does_not_pass_for_the_demo_model(
    tokenizer: Any, corpus_words: set[str]
) -> None:
    """The measure above can fail."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(DEMO_MODEL)
    config.initializer_range = 0.2
    untrained = Qwen3ForCausalLM(config).eval()
    words = words_of(prompts.continue_greedily(untrained, tokenizer, "Return the").text)
    assert sum(word in corpus_words for word in words) <= 0.9 * len(words)


@pytest.mark.parametrize("name", WELL_KNOWN)
def test_a_chat_names_what_it_was_asked_and_says_what_it_does(
    float32_model: Any, tokenizer: Any, corpus: Corpus, name: str
) -> None:
    answer = next(q.answer for q in corpus.questions if q.name == name)
    chat = [{"role": "user", "content": f"What does {name} do?"}]
    found = prompts.continue_greedily(float32_model, tokenizer, chat, 96)
    assert found.text.startswith(name + "(")
    assert found.finish_reason == "stop"
    expected, said = set(words_of(answer)), set(words_of(found.text))
    assert len(expected & said) >= 0.6 * len(expected)
