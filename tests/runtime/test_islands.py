# SPDX-License-Identifier: Apache-2.0
"""Nodes without a lowering run in PyTorch, on the memory of MLX."""

import json
import threading
from typing import Any

import pytest
import torch

from vllm_metal._native import core
from vllm_metal.islands import run_island

pytestmark = pytest.mark.unclaimed("aten.digamma.default")

ROWS = {"dtype": "float32", "shape": ["s0", 3]}


def node(name: str, target: str, *args: Any) -> dict[str, Any]:
    return {
        "name": name,
        "op": "call",
        "target": target,
        "args": list(args),
        "kwargs": {},
        "value": ROWS,
        "module": "model",
        "source": "models/test.py:1",
    }


def document() -> bytes:
    """``digamma(x + 1) * 2``: MLX has no digamma."""
    reference = {"node": "x"}
    nodes = [
        {"name": "x", "op": "placeholder", "role": "input", "value": ROWS},
        node("sum", "aten.add.Tensor", reference, 1),
        node("digamma", "aten.digamma.default", {"node": "sum"}),
        node("product", "aten.mul.Tensor", {"node": "digamma"}, 2),
        {"name": "output", "op": "output", "args": [{"node": "product"}]},
    ]
    graph = {
        "name": "backbone",
        "symbols": [{"name": "s0", "role": "num_tokens"}],
        "nodes": nodes,
    }
    content = {
        "format": "vllm-metal/fx",
        "version": 1,
        "architecture": "Test",
        "dtype": "float32",
        "producer": {"torch": "2", "vllm": "0"},
        "layers": {},
        "graphs": [graph],
    }
    return json.dumps(content).encode()


def test_an_island_equals_pytorch_and_runs_on_the_runtimes_thread(runtime: Any) -> None:
    calls: list[tuple[str, int]] = []

    def islands(target: str, arguments: str, operands: list[Any]) -> list[torch.Tensor]:
        calls.append((target, threading.get_ident()))
        return run_island(target, arguments, operands)

    plan = core.lower(document())
    model = runtime.load(plan, {}, islands)
    for num_tokens in (1, 5):
        x = torch.rand(num_tokens, 3)
        found = torch.from_dlpack(model.step({"x": x}))
        assert torch.allclose(found, torch.digamma(x + 1) * 2, atol=1e-6)
    assert [target for target, _ in calls] == ["aten.digamma.default"] * 2
    assert all(thread != threading.get_ident() for _, thread in calls)


def test_a_failing_island_names_its_node_and_the_runtime_goes_on(runtime: Any) -> None:
    fail = True

    def islands(target: str, arguments: str, operands: list[Any]) -> list[torch.Tensor]:
        if fail:
            raise KeyError("no such thing")
        return run_island(target, arguments, operands)

    model = runtime.load(core.lower(document()), {}, islands)
    x = torch.rand(2, 3)
    with pytest.raises(RuntimeError, match=r"digamma.default: KeyError: 'no such thing'"):
        model.step({"x": x})
    fail = False
    assert torch.from_dlpack(model.step({"x": x})).shape == (2, 3)


def test_results_are_checked(runtime: Any) -> None:
    def loaded(result: Any) -> Any:
        return runtime.load(core.lower(document()), {}, lambda *_: result)

    x = {"x": torch.rand(2, 3)}
    for result, message in [
        ([], "0 results instead of 1"),
        ([torch.zeros(2, 3).double()], "float64"),
        ([torch.zeros(3, 3)], r"\[3, 3\]"),
        (["text"], "a tensor expected, and not str"),
    ]:
        with pytest.raises((RuntimeError, ValueError), match=message):
            loaded(result).step(x)
    with pytest.raises(RuntimeError, match="no runner was given"):
        runtime.load(core.lower(document()), {}).step(x)


def test_the_runtime_cannot_be_called_from_an_island(runtime: Any) -> None:
    """It would wait for itself."""

    def islands(target: str, arguments: str, operands: list[Any]) -> list[torch.Tensor]:
        runtime.upload(torch.zeros(1))
        return []

    model = runtime.load(core.lower(document()), {}, islands)
    with pytest.raises(RuntimeError, match="cannot be called from inside an island"):
        model.step({"x": torch.rand(1, 3)})


def test_a_refused_fallback_names_the_node() -> None:
    with pytest.raises(ValueError, match=r"aten\.digamma\.default"):
        core.lower(document(), {"refuse_fallback": True})
