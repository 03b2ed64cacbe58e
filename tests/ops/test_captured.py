# SPDX-License-Identifier: Apache-2.0
"""Every ATen operator in the graphs that the tests capture is claimed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from capture.models import CONFIGS

from vllm_metal._native import core
from vllm_metal.capture import capture

DOCUMENTS = sorted(Path(__file__).parents[2].glob("lowering/tests/data/*.json"))


def _unclaimed(document: bytes) -> set[str]:
    graphs = json.loads(document)["graphs"]
    calls = [node for graph in graphs for node in graph["nodes"] if node["op"] == "call"]
    targets = {call["target"] for call in calls if call["target"].startswith("aten.")}
    assert targets
    return targets - set(core.claimed_targets())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_operators_of_a_vllm_model_are_claimed(name: str, build: Callable[..., Any]) -> None:
    assert not _unclaimed(capture(*build(name), ir_ops="decomposed").document)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_the_operators_of_a_document_are_claimed(path: Path) -> None:
    assert not _unclaimed(path.read_bytes())
