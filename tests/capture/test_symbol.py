# SPDX-License-Identifier: Apache-2.0
"""One symbol stands for the number of tokens, and nothing depends on its value in the trace."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from vllm_metal.capture import CaptureError, TokenCountGuardError, capture
from vllm_metal.capture.symbols import TRACE_TOKENS

from .conftest import Build
from .models import CONFIGS


def _dimensions(value: Any) -> list[Any]:
    if isinstance(value, dict) and "shape" in value:
        return list(value["shape"])
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [dimension for item in items for dimension in _dimensions(item)]


@pytest.mark.parametrize("name", CONFIGS)
def test_one_symbol_and_no_trace_size(build: Build, name: str) -> None:
    model, vllm_config = build(name)
    document = capture(model, vllm_config).document
    assert capture(model, vllm_config, trace_tokens=7919).document == document
    for graph in json.loads(document)["graphs"]:
        assert [symbol["name"] for symbol in graph["symbols"]] == ["s0"]
        nodes = graph["nodes"]
        inputs = [node for node in nodes if node.get("role") == "input"]
        assert inputs and all(node["value"]["shape"][0] == "s0" for node in inputs)
        texts = {d for node in nodes for d in _dimensions(node.get("value")) if isinstance(d, str)}
        assert texts
        assert all(text.replace("s0", "").strip(" *+-/()0123456789") == "" for text in texts)


class _Model(nn.Module):
    """The smallest thing that can be captured; tests override ``step``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, input_ids: Any, positions: Any, **_: Any) -> torch.Tensor:
        return self.step(positions.float()[:, None].expand(-1, 4))

    def step(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class _Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] > 16 else x


class _Number(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(int(x.shape[0]), 4)


@pytest.mark.parametrize(
    ("inner", "condition"), [(_Branch(), "s0 > 16"), (_Number(), f"Eq(s0, {TRACE_TOKENS})")]
)
def test_a_guard_names_its_place(build: Build, inner: nn.Module, condition: str) -> None:
    _, vllm_config = build("llama")
    model = _Model()
    model.inner = inner
    with pytest.raises(TokenCountGuardError) as error:
        capture(model, vllm_config)
    assert "module inner" in str(error.value)
    assert condition in str(error.value)


def test_a_burnt_in_size_names_its_place(build: Build) -> None:
    _, vllm_config = build("llama")

    class Burnt(_Model):
        def step(self, x: torch.Tensor) -> torch.Tensor:
            return x + TRACE_TOKENS

    with pytest.raises(CaptureError, match=r"aten\.add\.Tensor holds 1000003"):
        capture(Burnt(), vllm_config)


def test_a_failure_names_its_place(build: Build) -> None:
    _, vllm_config = build("llama")

    class Wrong(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ torch.ones(5, 5)

    model = _Model()
    model.inner = Wrong()
    with pytest.raises(CaptureError, match=r"module inner.*RuntimeError"):
        capture(model, vllm_config)


class _ReadsNumber(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.sum().item()


class _ReadsShape(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten()[x.flatten() > 1]


@pytest.mark.parametrize("inner", [_ReadsNumber(), _ReadsShape()])
def test_what_depends_on_the_data_is_refused(build: Build, inner: nn.Module) -> None:
    _, vllm_config = build("llama")
    model = _Model()
    model.inner = inner
    with pytest.raises(CaptureError, match=r"module inner.*contents"):
        capture(model, vllm_config)


def test_a_shape_changed_in_place_is_seen(build: Build) -> None:
    _, vllm_config = build("llama")

    class InPlace(_Model):
        def step(self, x: torch.Tensor) -> torch.Tensor:
            return x.neg().unsqueeze_(0).mul_(2)

    nodes = json.loads(capture(InPlace(), vllm_config).document)["graphs"][0]["nodes"]
    mul = next(node for node in nodes if node.get("target") == "aten.mul_.Tensor")
    assert mul["value"]["shape"] == [1, "s0", 4]


def test_a_compiled_helper_is_traced_through(build: Build) -> None:
    _, vllm_config = build("llama")

    class Compiled(_Model):
        @torch.compile
        def step(self, x: torch.Tensor) -> torch.Tensor:
            return x.sin() + x.cos()

    document = json.loads(capture(Compiled(), vllm_config).document)
    targets = [node.get("target") for node in document["graphs"][0]["nodes"]]
    assert "aten.sin.default" in targets and "aten.cos.default" in targets


def test_a_constant_is_kept_by_path(build: Build) -> None:
    _, vllm_config = build("llama")

    class Constant(_Model):
        def step(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.tensor([1.0, 2.0, 3.0, 4.0]) * torch.tensor(3.0).item()

    captured = capture(Constant(), vllm_config)
    assert list(captured.buffers) == ["constants.0"]
    assert captured.buffers["constants.0"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert b'{"float":"3.0"}' in captured.document


def test_what_the_output_does_not_need_is_left_out(build: Build) -> None:
    _, vllm_config = build("llama")

    class Dead(_Model):
        def step(self, x: torch.Tensor) -> torch.Tensor:
            self.inner(x).exp()
            return x.neg()

    captured = capture(Dead(), vllm_config)
    assert captured.parameters == {}
    assert b"aten.neg" in captured.document and b"aten.exp.default" not in captured.document
