# SPDX-License-Identifier: Apache-2.0
"""Executing the document gives exactly what vLLM's model gives."""

import pytest
import torch

from vllm_metal.capture import Interpreter, capture, fill_parameters, prefill

from .conftest import Build
from .models import CONFIGS


@pytest.mark.parametrize("ir_ops", ["whole", "decomposed"])
@pytest.mark.parametrize("name", CONFIGS)
def test_document_equals_model(build: Build, name: str, ir_ops: str) -> None:
    model, vllm_config = build(name)
    captured = capture(model, vllm_config, ir_ops=ir_ops)  # type: ignore[arg-type]
    fill_parameters(model)
    interpreter = Interpreter(
        captured.document, {**captured.buffers, **dict(model.named_parameters())}
    )
    for num_tokens in (1, 2, 19):
        ids = torch.randint(0, 256, (num_tokens,), dtype=torch.int32)
        positions = torch.arange(num_tokens)
        with prefill(vllm_config, num_tokens):
            expected = model(ids, positions, None, None)
            expected_logits = model.compute_logits(expected)
        with prefill(vllm_config, num_tokens):
            (hidden,) = interpreter.run("backbone", input_ids=ids, positions=positions)
            (logits,) = interpreter.run("logits", hidden_states=hidden)
        assert torch.equal(hidden, expected)
        assert torch.equal(logits, expected_logits)
        assert hidden.std() > 0


def test_another_weight_gives_another_answer(build: Build) -> None:
    """The comparison above can fail: it sees a change of one weight in the last layer."""
    model, vllm_config = build("llama")
    captured = capture(model, vllm_config)
    fill_parameters(model)
    tensors = {**captured.buffers, **dict(model.named_parameters())}
    weight = tensors["model.layers.1.mlp.down_proj.weight"].detach().clone()
    weight[0, 0] += 1
    inputs = {"input_ids": torch.arange(5, dtype=torch.int32), "positions": torch.arange(5)}
    results = []
    for changed in ({}, {"model.layers.1.mlp.down_proj.weight": weight}):
        with prefill(vllm_config, 5):
            results += Interpreter(captured.document, {**tensors, **changed}).run(
                "backbone", **inputs
            )
    assert not torch.equal(*results)
