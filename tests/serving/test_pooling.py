# SPDX-License-Identifier: Apache-2.0
"""Embeddings and scores of vLLM's API; `tests/zoo` covers the architectures, row by row."""

from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    PreTrainedModel,
)

from serving import checkpoints
from serving.conftest import MakeEngine

WORDS = [f"w{i}" for i in range(100)]
QUERY = "w1 w2 w3"
DOCUMENTS = ["w4 w5", "w6", "w7 w8 w9 w10 w11 w12", QUERY]
POOLING = {"runner": "pooling", "skip_tokenizer_init": False, "max_model_len": 128}


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    """A model that scores pairs of texts, and tells them apart by token types."""
    directory = tmp_path_factory.mktemp("cross-encoder")
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=128,
        initializer_range=0.2,
        num_labels=1,
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(directory)
    BertTokenizerFast(vocab=vocab).save_pretrained(directory)
    model.name_or_path = str(directory)
    return model


def test_pairs_are_scored_with_their_token_types(
    cross_encoder: PreTrainedModel, make_engine: MakeEngine
) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(cross_encoder.name_or_path)
    with make_engine(cross_encoder.name_or_path, **POOLING) as llm:
        found = [output.outputs.score for output in llm.score(QUERY, DOCUMENTS, use_tqdm=False)]
        alone = llm.classify([QUERY], use_tqdm=False)[0].outputs.probs
    with torch.no_grad():
        pairs = [tokenizer(QUERY, document, return_tensors="pt") for document in DOCUMENTS]
        expected = [cross_encoder(**pair).logits.sigmoid().item() for pair in pairs]
        flat = [
            cross_encoder(input_ids=pair["input_ids"]).logits.sigmoid().item() for pair in pairs
        ]
        single = cross_encoder(**tokenizer(QUERY, return_tensors="pt")).logits.sigmoid()
    assert found == pytest.approx(expected, abs=1e-5)
    assert alone == pytest.approx(single[0].tolist(), abs=1e-5)
    assert max(abs(a - b) for a, b in zip(expected, flat, strict=True)) > 0.01  # types matter


def test_a_model_that_generates_embeds_in_steps_of_any_size(
    tmp_path: Path, make_engine: MakeEngine
) -> None:
    model = checkpoints.build("qwen3", tmp_path)
    prompts = [list(range(3, 3 + length)) for length in (1, 9, 50, 70)]
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]
    with torch.no_grad():
        states = [model.model(torch.tensor([p])).last_hidden_state[0, -1] for p in prompts]
    for options in ({}, {"max_num_batched_tokens": 16}):
        with make_engine(tmp_path, **POOLING | options) as llm:
            outputs = llm.embed(requests, use_tqdm=False)
        for output, state in zip(outputs, states, strict=True):
            found = torch.tensor(output.outputs.embedding)
            torch.testing.assert_close(found, state / state.norm(), atol=1e-5, rtol=0)
