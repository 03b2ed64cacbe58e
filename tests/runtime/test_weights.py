# SPDX-License-Identifier: Apache-2.0
"""Weights: taken over without a copy, checked, and named in every error."""

import json
import re
import struct
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vllm_metal._native import core
from vllm_metal.capture import capture, fill_parameters

from .lowered import BLOCK_SIZE, NUM_BLOCKS, Lowered, lower


def file_tensors(path: Path) -> dict[str, Any]:
    """Every tensor of a safetensors file as a view of it."""
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            tensors[name] = core.FileTensor(
                path, 8 + length + start, end - start, names[entry["dtype"]], entry["shape"]
            )
    return tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mapped_file_equals_the_tensors_in_it(
    runtime: Any, build: Callable[..., Any], tmp_path: Path, dtype: str
) -> None:
    torch_model, vllm_config = build("qwen3", dtype)
    captured = capture(torch_model, vllm_config)
    fill_parameters(torch_model)
    parameters = {name: value.data for name, value in torch_model.named_parameters()}
    save_file(parameters, tmp_path / "model.safetensors")
    plan = core.lower(captured.document)
    tensors = file_tensors(tmp_path / "model.safetensors")
    ids = torch.randint(0, 256, (20,), dtype=torch.int32)
    results = []
    for given in (parameters, tensors):
        model = runtime.load(plan, {**captured.buffers, **given})
        model.allocate_kv_cache(dict.fromkeys(plan.layers, (NUM_BLOCKS, BLOCK_SIZE, dtype)))
        results.append(Lowered(torch_model, vllm_config, plan, model).run(ids))
    assert torch.equal(*results)
    used = sum(tensor.nbytes for name, tensor in parameters.items() if name in set(plan.parameters))
    report = model.load_report
    # MLX's CPU allocator takes no foreign memory.
    assert (report["mapped_bytes"], report["borrowed_bytes"]) == (0, 0)
    assert report["copied_bytes"] == used + sum(
        buffer.nbytes for name, buffer in captured.buffers.items() if name in plan.parameters
    )


class Consumed(dict[str, torch.Tensor]):
    """Gives every tensor away, and counts how many of them are alive at most."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        self.given: list[weakref.ref[torch.Tensor]] = []
        self.most_alive = 0

    def __getitem__(self, path: str) -> torch.Tensor:
        tensor = self.pop(path)
        self.given.append(weakref.ref(tensor))
        self.most_alive = max(self.most_alive, sum(ref() is not None for ref in self.given))
        return tensor


def test_weights_are_held_once(runtime: Any, build: Callable[..., Any]) -> None:
    torch_model, vllm_config = build("llama")
    captured = capture(torch_model, vllm_config)
    fill_parameters(torch_model)
    plan = core.lower(captured.document)
    tensors = {path: value.data.clone() for path, value in torch_model.named_parameters()}
    tensors = Consumed({**tensors, **{path: b.clone() for path, b in captured.buffers.items()}})
    nbytes = sum(tensor.nbytes for path, tensor in tensors.items() if path in plan.parameters)
    largest = max(tensor.nbytes for path, tensor in tensors.items() if path in plan.parameters)
    runtime.reset_peak()
    before = runtime.memory()["active"]
    model = runtime.load(plan, tensors)
    report = model.load_report
    assert report["borrowed_bytes"] + report["copied_bytes"] == nbytes
    # Folds of the plan are views, and nothing but scalars comes on top. On Linux one weight after
    # the other is laid out anew, and while that lasts there are two of it.
    scalars = 4096 * len(plan.parameters)
    assert runtime.memory()["active"] - before <= nbytes + scalars
    twice = largest if sys.platform == "linux" else 0
    assert runtime.memory()["peak"] - before <= nbytes + twice + scalars
    # What MLX copied is let go at once.
    assert report["borrowed_bytes"] > 0 or tensors.most_alive == 1


def test_wrong_parameters_are_named(
    runtime: Any, build: Callable[..., Any], tmp_path: Path
) -> None:
    torch_model, vllm_config = build("llama")
    captured = capture(torch_model, vllm_config)
    fill_parameters(torch_model)
    plan = core.lower(captured.document)
    good = {**captured.buffers, **dict(torch_model.named_parameters())}
    path = "model.layers.1.mlp.down_proj.weight"
    file = tmp_path / "weights.safetensors"
    save_file({path: torch.zeros(64, 64)}, file)
    for wrong, message in [
        (None, f'parameter "{path}": it is missing from the checkpoint'),
        (torch.zeros(64, 64), r"expected float32\[64,128\], found float32\[64, 64\]"),
        (good[path].half(), r"found float16\[64, 128\]"),
        (3, f'parameter "{path}": TypeError: a tensor expected, and not int'),
        (file_tensors(file)[path], f'parameter "{path}" in {file}: expected'),
    ]:
        parameters = {**good, path: wrong}
        if wrong is None:
            del parameters[path]
        with pytest.raises(ValueError, match=message):
            runtime.load(plan, parameters)


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(bytes(100))
    for arguments, message in [
        ((path, 90, 16, "float32", [4]), "short.safetensors: .*the file is truncated"),
        ((path, 0, 16, "float32", [5]), r"16 bytes at 0 are not float32\[5\]"),
        ((path, 0, 16, "fp3", [4]), 'dtype "fp3" is unknown'),
        ((tmp_path / "none", 0, 4, "float32", [1]), "No such file"),
    ]:
        with pytest.raises(ValueError, match=message):
            core.FileTensor(*arguments)


def test_broken_plans_are_refused(build: Callable[..., Any]) -> None:
    torch_model, vllm_config = build("llama")
    plan = core.lower(capture(torch_model, vllm_config).document)
    content = plan.to_bytes()
    assert core.Plan.from_bytes(content).sha256 == plan.sha256
    other_version = re.sub(rb'"version":\d+', b'"version":999', content, count=1)
    for broken in (b"", b"{}", content[:-1], other_version):
        with pytest.raises(ValueError, match="malformed plan"):
            core.Plan.from_bytes(broken)


def test_nan_weights_are_served(runtime: Any, build: Callable[..., Any]) -> None:
    lowered = lower(
        runtime, build, "llama", change={"model.layers.0.mlp.down_proj.weight": float("nan")}
    )
    ids = torch.randint(0, 256, (5,), dtype=torch.int32)
    assert lowered.run(ids).isnan().all()
    assert lowered.run(ids).shape == (5, 256)
