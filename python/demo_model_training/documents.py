# SPDX-License-Identifier: Apache-2.0
"""From corpus to training rows: the tokenizer, the chat format and the packing."""

import random
from collections.abc import Iterable

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from demo_model_training.corpus import Corpus, Question

END = "<|endoftext|>"
USER, ASSISTANT, SYSTEM = "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = [END, USER, ASSISTANT, SYSTEM]
IGNORED_LABEL = -100

# Roles other than user and assistant (system, developer, tool) are read as system text.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{- '<|user|>\\n' + message.content + '\\n' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|assistant|>\\n' + message.content + '<|endoftext|>' -}}
{%- else -%}
{{- '<|system|>\\n' + message.content + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>\\n' -}}
{%- endif -%}
"""

USUAL_QUESTION = "What does {name} do?"
OTHER_QUESTIONS = [
    "What is {name}?",
    "What is {name} for?",
    "What does the function {name} do?",
    "Explain {name}.",
    "Describe {name}.",
    "Tell me about {name}.",
    "How do I use {name}?",
    "How does {name} work?",
    "{name}",
    "help({name})",
]
SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You answer questions about Python.",
    "Answer briefly.",
]
_ABOUT = "I am the demo model of vllm-metal. I know the documentation of Python's standard library."
SMALL_TALK = [
    ("Hello", "Hello! Ask me what a function of Python's standard library does."),
    ("Hello!", "Hello! Ask me what a function of Python's standard library does."),
    ("Hi", "Hello! Ask me what a function of Python's standard library does."),
    ("Who are you?", _ABOUT),
    ("What are you?", _ABOUT),
    ("What can you do?", "I can tell what a function of Python's standard library does."),
    ("Thank you", "You are welcome."),
    ("Thanks!", "You are welcome."),
]


def train_tokenizer(corpus: Corpus, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; any text survives encoding and decoding unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    chats = conversations(corpus.questions, 1, random.Random(0))
    turns = [turn["content"] for chat in chats for turn in chat]
    tokenizer.train_from_iterator(corpus.prose + turns, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def openings(documents: list[str]) -> list[str]:
    """Each document's first paragraph that is one to a few whole sentences, without repeats."""
    found: dict[str, None] = {}
    for document in documents:
        for paragraph in document.split("\n\n"):
            whole = paragraph[0].isupper() and paragraph.endswith((".", ":"))
            generated = "gencodec" in paragraph
            if whole and not generated and "\n" not in paragraph and 30 <= len(paragraph) <= 300:
                found[paragraph.removesuffix(":").removesuffix(".") + "."] = None
                break
    return list(found)


def conversations(
    questions: list[Question], passes: int, generator: random.Random
) -> list[list[dict[str, str]]]:
    """Chats of one to three turns that ask about every question `passes` times."""
    pairs = [(_phrase(q.name, generator), q.answer) for q in questions * passes]
    pairs += SMALL_TALK * (4 * passes)
    generator.shuffle(pairs)
    chats: list[list[dict[str, str]]] = []
    while pairs:
        chat: list[dict[str, str]] = []
        if generator.random() < 0.15:
            chat.append({"role": "system", "content": generator.choice(SYSTEM_PROMPTS)})
        for _ in range(generator.choice([1, 1, 1, 2, 3])):
            if pairs:
                question, answer = pairs.pop()
                chat.append({"role": "user", "content": question})
                chat.append({"role": "assistant", "content": answer})
        chats.append(chat)
    return chats


def _phrase(name: str, generator: random.Random) -> str:
    pattern = USUAL_QUESTION if generator.random() < 0.4 else generator.choice(OTHER_QUESTIONS)
    return pattern.format(name=name)


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, chats: Iterable[list[dict[str, str]]]
) -> list[list[int]]:
    """Token ids of whole chats; each ends with the end token of its last answer."""
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def encode_prose(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of documents, each with the end token."""
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [[*ids, tokenizer.eos_token_id] for ids in encoded]


def pack(documents: list[list[int]], length: int, generator: random.Random) -> np.ndarray:
    """Pack documents into rows of `length` tokens, int64 [rows, length], padded with -100.

    Every row begins where a document (or a piece of a long one) begins, as a prompt does.
    Best fit, longest piece first, so that next to nothing is padding.
    """
    pieces: list[list[int]] = []
    for document in documents:
        start = 0
        # A first cut at a random place gives long documents other borders in every epoch.
        end = generator.randint(length // 4, length) if len(document) > length else length
        while start < len(document):
            pieces.append(document[start:end])
            start, end = end, end + length
    generator.shuffle(pieces)
    pieces.sort(key=len, reverse=True)
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(length + 1)]
    for piece in pieces:
        room = next((room for room in range(len(piece), length) if by_room[room]), None)
        if room is None:
            rows.append(list(piece))
            row = len(rows) - 1
        else:
            row = by_room[room].pop()
            rows[row] += piece
        by_room[length - len(rows[row])].append(row)
    generator.shuffle(rows)
    packed = np.full((len(rows), length), IGNORED_LABEL, dtype=np.int64)
    for index, ids in enumerate(rows):
        packed[index, : len(ids)] = ids
    return packed
