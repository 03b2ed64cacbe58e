# SPDX-License-Identifier: Apache-2.0
"""Whatever strided copies a loader makes, the recorded recipe puts the same bytes together."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from vllm.model_executor.model_loader import default_loader

from vllm_metal._native import core
from vllm_metal.plan_cache.state import tensor_bytes
from vllm_metal.weight_trace import Unexplained, WeightTrace

SOURCES = {
    "q": torch.arange(24.0).view(6, 4) + 100,
    "k": torch.arange(12.0).view(3, 4) + 200,
    "experts": torch.arange(48.0).view(4, 3, 4) + 300,
    "wide": torch.arange(12.0).view(3, 4) / 3,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(SOURCES, tmp_path / "model.safetensors")
    return tmp_path


def trace(
    folder: Path, load: Callable[[dict[str, torch.Tensor]], torch.Tensor]
) -> tuple[WeightTrace, torch.Tensor]:
    recorded = WeightTrace()
    with recorded.watching():
        files = default_loader.safetensors_weights_iterator(
            [str(folder / "model.safetensors")], False
        )
        result = load(dict(files))
    return recorded, result


def rebuilt(folder: Path, recorded: WeightTrace, tensor: torch.Tensor) -> tuple[bytes, int]:
    """The bytes that the recipe gives, and the number of its pieces."""
    pieces = recorded.pieces(tensor)
    kind = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    recipe = {
        "sources": {
            name: {"dtype": "float32", "shape": list(source.shape)}
            for name, source in SOURCES.items()
        },
        "parameters": {"p": {**kind, "pieces": pieces}},
    }
    built = core.Recipe(json.dumps(recipe).encode()).build("p", core.Checkpoint(folder))
    return bytes(built), len(pieces)


def fused(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    parameter = torch.empty(9, 4)
    parameter.narrow(0, 0, 6).copy_(sources["q"])
    parameter[6:].copy_(sources["k"])
    return parameter


def padded(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    parameter = torch.empty(8, 4)
    parameter[:6].copy_(sources["q"])
    parameter[6:].fill_(0)
    return parameter


def cast(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.empty(3, 4, dtype=torch.bfloat16).copy_(sources["wide"])


def transposed(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.empty(4, 6).copy_(sources["q"].t())


def transposed_later(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.empty(6, 4).copy_(sources["q"]).t().contiguous()


def viewed(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.empty(6, 4).copy_(sources["q"]).t()


def stacked(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    parameter = torch.empty(4, 5, 4)
    for expert in range(4):
        parameter[expert, 1:4].copy_(sources["experts"][expert])
    parameter[:, 0].zero_()
    parameter[:, 4].zero_()
    return parameter


def concatenated(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    whole = torch.cat([sources["k"], sources["q"][2:4], sources["k"].clone()])
    return torch.empty(8, 4).copy_(whole)


def interleaved(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    """Halves to pairs, as rotary weights of other frameworks are."""
    order = torch.tensor([0, 3, 1, 4, 2, 5])
    return torch.empty(6, 4).copy_(sources["q"].index_select(0, order))


def written_twice(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    parameter = torch.empty(3, 4).copy_(sources["wide"])
    return parameter.copy_(sources["k"])


def itself(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    return sources["q"][1:]


def stacked_scalars(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([sources["k"][0], sources["k"][2]], 1)


@pytest.mark.parametrize(
    ("load", "most"),
    [
        (fused, 2),
        (padded, 2),
        (cast, 1),
        (transposed, 1),
        (transposed_later, 1),
        (viewed, 1),
        (stacked, 6),
        (concatenated, 3),
        (interleaved, 3),
        (written_twice, 1),
        (itself, 1),
        (stacked_scalars, 2),
    ],
)
def test_copies_are_recorded_and_repeated(
    folder: Path, load: Callable[[dict[str, torch.Tensor]], torch.Tensor], most: int
) -> None:
    recorded, tensor = trace(folder, load)
    built, pieces = rebuilt(folder, recorded, tensor)
    assert built == tensor_bytes(tensor)
    assert pieces <= most


def added(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.empty(6, 4).copy_(sources["q"] + 1)


def scaled_in_place(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.empty(6, 4).copy_(sources["q"]).mul_(2)


def changed_source(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.empty(6, 4).copy_(sources["q"].add_(1))


def not_loaded(sources: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.ones(4)


@pytest.mark.parametrize("load", [added, scaled_in_place, changed_source, not_loaded])
def test_arithmetic_is_not_taken_for_a_copy(
    folder: Path, load: Callable[[dict[str, torch.Tensor]], torch.Tensor]
) -> None:
    recorded, tensor = trace(folder, load)
    try:
        built, _ = rebuilt(folder, recorded, tensor)
    except (Unexplained, ValueError):
        return
    assert built != tensor_bytes(tensor)
